"""Files of weights: safetensors as the library writes and reads them, archives as torch.save wrote them, and hostile ones."""

import copyreg
import functools
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxdiff import interop
from jaxdiff.io.errors import ConfigError, DataError

RECORDED = pathlib.Path(__file__).parent / "data" / "archives"
COUNT = np.arange(24, dtype=np.float32).reshape(4, 6)
KINDS = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]
DTYPES = [np.dtype(kind) for kind in KINDS] + [np.dtype(ml_dtypes.bfloat16)]


def arrays():
    """Every dtype in every rank, also without elements; names that JSON must quote."""
    shapes = ((2, 3), (), (0, 4), (5,))
    drawn = np.random.default_rng(0).normal(0, 3, (len(DTYPES), 6))
    pairs = [(dtype, shape, row) for dtype, row in zip(DTYPES, drawn, strict=True) for shape in shapes]
    return {
        f'é"{i}.{dtype.name}': np.asarray(np.abs(row)[: int(np.prod(shape))].reshape(shape)).astype(dtype)
        for i, (dtype, shape, row) in enumerate(pairs)
    }


def same(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def refusal(path, kind=DataError):
    with pytest.raises(kind) as caught:
        interop.open_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# safetensors


def test_what_the_library_writes_is_read(tmp_path):
    expected = arrays()
    safetensors.numpy.save_file(expected, tmp_path / "model.safetensors", {"format": "pt"})
    found = interop.open_tensors(tmp_path / "model.safetensors")
    assert sorted(found) == sorted(expected)
    assert all(same(found[name], expected[name]) for name in expected)
    assert found.metadata == {"format": "pt"}
    assert not any(found[name].flags.writeable for name in expected)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
def test_what_is_written_is_what_the_library_writes(tmp_path, metadata):
    expected = arrays()
    lazy = {name: interop.Lazy(array.shape, array.dtype, lambda array=array: array) for name, array in reversed(expected.items())}
    for tensors in (expected, lazy):
        interop.save_tensors(tmp_path / "model.safetensors", tensors, metadata)
        assert (tmp_path / "model.safetensors").read_bytes() == safetensors.numpy.save(expected, metadata)


def test_the_order_of_metadata_does_not_matter(tmp_path):
    for metadata in ({"b": "1", "a": "2"}, {"a": "2", "b": "1"}):
        interop.save_tensors(tmp_path / f"{next(iter(metadata))}.safetensors", {"w": COUNT}, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert interop.open_tensors(tmp_path / "a.safetensors").metadata == {"a": "2", "b": "1"}


def test_arrays_in_any_layout_are_written(tmp_path):
    values = {"t": COUNT.T, "big": COUNT.astype(">f4"), "jax": jnp.asarray(COUNT, jnp.bfloat16)}
    interop.save_tensors(tmp_path / "model.safetensors", values)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert same(found["t"], np.ascontiguousarray(COUNT.T))
    assert same(found["big"], COUNT)
    assert same(found["jax"], COUNT.astype(ml_dtypes.bfloat16))


def test_arrays_at_odd_places_are_read(tmp_path):
    text = b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\7" + np.float32([2, 3]).tobytes())
    found = interop.open_tensors(tmp_path / "odd.safetensors")
    assert list(found) == ["a", "b"]
    assert jnp.asarray(found["b"]).tolist() == [2, 3]


def test_one_array_is_in_memory_at_a_time(tmp_path):
    size = 2**20
    lazy = {str(i): interop.Lazy((size,), np.uint8, functools.partial(np.full, size, i, np.uint8)) for i in range(8)}
    tracemalloc.start()
    interop.save_tensors(tmp_path / "model.safetensors", lazy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * size
    found = interop.open_tensors(tmp_path / "model.safetensors")
    assert resident(tmp_path) == 0
    for i in range(8):
        assert (found[str(i)] == i).all()
        assert size <= resident(tmp_path) < 2 * size
    found.release()
    assert resident(tmp_path) == 0
    assert (found["3"] == 3).all()


def resident(folder):
    """Bytes of maps of a folder's files that are in memory."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/self/smaps").read_text())
    return sum(int(re.search(r"\nRss: +(\d+) kB", each)[1]) * 1024 for each in maps if str(folder) in each.partition("\n")[0])


@pytest.mark.parametrize("wrong", [{"shape": (3,)}, {"dtype": np.float64}], ids=str)
def test_a_file_appears_whole_or_not_at_all(tmp_path, wrong):
    path = tmp_path / "model.safetensors"
    interop.save_tensors(path, {"w": COUNT})
    before = path.read_bytes()
    lazy = interop.Lazy(**({"shape": (2,), "dtype": np.float32} | wrong), value=lambda: np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"^w is float32"):
        interop.save_tensors(path, {"v": COUNT, "w": lazy})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, np.complex64, "U3"], ids=str)
def test_a_dtype_that_cannot_be_written(tmp_path, dtype):
    with pytest.raises(ConfigError, match=r"w of .* cannot be written; convert it to float16"):
        interop.save_tensors(tmp_path / "model.safetensors", {"w": np.zeros(2, dtype)})
    assert not any(tmp_path.iterdir())


def test_float8_is_refused_by_name(tmp_path):
    tensors = {"a": np.zeros(2, np.float16), "b.scale": np.zeros(2, ml_dtypes.float8_e4m3fn)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert "'b.scale' is F8_E4M3; convert its tensors to float16, bfloat16 or float32" in refusal(tmp_path / "model.safetensors")


def entry(dtype="F32", shape=(2,), data_offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


WRONG_HEADERS = {
    "beyond the file": ({"a": entry(shape=(3,), data_offsets=(0, 12))}, b"8 bytes."),
    "one over another": ({"a": entry(), "b": entry()}, b"8 bytes."),
    "a gap": ({"a": entry(data_offsets=(8, 16))}, b"16 bytes........"),
    "more bytes": ({"a": entry()}, b"16 bytes........"),
    "another size": ({"a": entry(shape=(1,))}, b"8 bytes."),
    "too large": ({"a": entry(shape=(2**62, 2**62))}, b"8 bytes."),
    "an unknown dtype": ({"a": entry(dtype="X32")}, b"8 bytes."),
    "nothing": ({}, b""),
}


@pytest.mark.parametrize(("header", "data"), WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_wrong_headers(tmp_path, header, data):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert re.search("is not a whole safetensors file|holds no tensors", refusal(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"], ids=str)
@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.safetensors.index.json"])
def test_what_is_no_file_of_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert re.search("empty|not a whole safetensors|not a zip archive|no index", refusal(tmp_path / name))


# folders and shards


def write(path, *names):
    """A file of weights with a tensor of each name."""
    tensors = {name: np.float32([len(name)]) for name in names or (path.name,)}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "shard-00001-of-00001.safetensors")}))
        write(path.parent / "shard-00001-of-00001.safetensors", *tensors)
    else:
        archive(path, state(*((name, view(key=name)) for name in tensors)), tensors)


FOLDERS = [  # files, and the one that is read
    "diffusion_pytorch_model.safetensors diffusion_pytorch_model.bin diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors optimizer.bin other.safetensors model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.json diffusion_pytorch_model.bin",
    "pytorch_model.bin training_args.bin lora.safetensors",
    "pytorch_model.bin model.fp16.safetensors",
    "model.fp16.safetensors model.fp16.bin",
    "diffusion_pytorch_model.safetensors.index.fp16.json model.fp16.bin",
    "pytorch_lora_weights.safetensors config.json",
    "sd_xl_base_1.0.safetensors",
    "v1-5-pruned.ckpt",
]


@pytest.mark.parametrize("names", FOLDERS)
def test_the_file_of_a_folder(tmp_path, names):
    for name in names.split():
        (tmp_path / name).write_text("{}") if name == "config.json" else write(tmp_path / name)
    assert list(interop.open_tensors(tmp_path)) == names.split()[:1]


@pytest.mark.parametrize("names", ["a.safetensors b.safetensors", "model.bf16.safetensors model.fp16.safetensors", "a.ckpt b.pt"])
def test_a_folder_of_several_files(tmp_path, names):
    for name in names.split():
        write(tmp_path / name)
    assert f"several files of weights: {', '.join(names.split())};" in refusal(tmp_path, ConfigError)


def test_no_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "shard-00001-of-00002.safetensors").write_text("")
    assert "holds no .safetensors, " in refusal(tmp_path, ConfigError)
    assert "there is no file" in refusal(tmp_path / "model.safetensors", ConfigError)
    (tmp_path / "weights.h5").write_text("weights")
    assert "no file of weights by its name" in refusal(tmp_path / "weights.h5", ConfigError)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(tmp_path, ending):
    first, second = (f"model-0000{i}-of-00002.{ending}" for i in (1, 2))
    index = tmp_path / f"model.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": {"c": second, "aa": first, "bbb": second}}))
    write(tmp_path / first, "aa")
    assert f"names the shard {second!r}, which is not beside it; copy or download all 2" in refusal(index)
    write(tmp_path / second, "bbb")
    assert f"says that {second!r} holds 'c', and it does not" in refusal(index)
    write(tmp_path / second, "bbb", "c")
    assert {name: array.tolist() for name, array in interop.open_tensors(tmp_path).items()} == {"c": [1], "aa": [2], "bbb": [3]}
    (tmp_path / second).write_bytes((tmp_path / second).read_bytes()[:-30])
    with pytest.raises(DataError, match=f"{second} is not a whole"):
        interop.open_tensors(index)


def test_shards_lie_beside_their_index(tmp_path):
    write(tmp_path / "model.safetensors", "a")
    (tmp_path / "folder").mkdir()
    index = tmp_path / "folder" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "'../model.safetensors', which is not beside it" in refusal(index)


# archives


def archive(path, pickled, storages=None, compression=zipfile.ZIP_STORED, **entries):
    """An archive as torch.save lays it out, of any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, values in (storages or {"0": np.float32([1, 2, 3, 4])}).items():
            file.writestr(f"archive/data/{key}", values.tobytes())
        file.writestr("archive/data/after", b"not of the storage before")
        for name, value in entries.items():
            file.writestr(f"archive/{name}", value)
    return path


def put(value):
    """Opcodes that put a value of Python on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def view(offset=0, shape=(1,), strides=(1,), storage=b"ctorch\nFloatStorage\n", key="0", rest=(False, None)):
    """Opcodes that put a tensor on the stack."""
    place = b"(" + put("storage") + storage + put(key) + put("cpu") + put(4) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"".join(map(put, (offset, shape, strides, *rest))) + b"tR"


def state(*pairs):
    """The pickle of a dict of values, given as opcodes."""
    return b"\x80\x02}" + b"".join(put(name) + value + b"s" for name, value in pairs) + b"."


def recorded(name):
    return dict(interop.open_tensors(RECORDED / f"{name}.pt"))


def test_every_dtype_of_torch():
    found = recorded("kinds")
    assert same(found.pop("bool"), np.array([True, False]))
    assert [array.dtype.name for array in found.values()] == list(found)
    assert sorted(found) == sorted({dtype.name for dtype in DTYPES} - {"bool"})
    assert all(array.tolist() == [[0, 1, 2], [3, 4, 5]] for array in found.values())


def test_views_of_one_storage():
    found = recorded("views")
    expected = {"whole": COUNT, "transposed": COUNT.T, "columns": COUNT[1:, 1::2], "row": COUNT[2], "number": COUNT[3, 5]}
    expected |= {"repeated": np.zeros((3, 4), np.float32), "empty": COUNT[4:]}
    assert list(found) == list(expected)
    assert all(same(found[name], np.asarray(expected[name])) for name in expected)
    assert not any(array.flags.writeable for array in found.values())
    assert np.shares_memory(found["whole"], found["transposed"])


NESTED = {
    "parameter": ["weight"],
    "protocol4": ["w"],
    "nested": [f"inner.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")],
    "several": ["model.w", "optimizer.state.0.0"],
    "ema": ["ema.w"],
}


@pytest.mark.parametrize(("name", "expected"), NESTED.items(), ids=NESTED)
def test_names_inside_containers(name, expected):
    assert list(recorded(name)) == expected


def test_a_key_that_is_called_like_a_wrapper(tmp_path):
    assert list(interop.open_tensors(archive(tmp_path / "x.pt", state(("model", view()))))) == ["model"]


REFUSED = {
    "float8": "'scale' is torch.float8_e4m3fn; convert its tensors to float16",
    "complex": "'phase' is torch.ComplexFloatStorage; convert",
    "module": "holds 'torch.nn.modules.container.Sequential', which is not a tensor; nothing of it was run; save the state_dict",
    "bare": "holds no dict of tensors",
    "legacy": "is not a zip archive, as PyTorch writes them since 1.6; load it in PyTorch",
}


@pytest.mark.parametrize(("name", "message"), REFUSED.items(), ids=REFUSED)
def test_other_things_that_torch_saves(name, message):
    assert message in refusal(RECORDED / f"{name}.pt")


BEYOND = {
    "offset": {"offset": 4},
    "offset before": {"offset": -1},
    "shape": {"shape": (5,)},
    "rows": {"shape": (2, 2), "strides": (3, 1)},
    "stride": {"shape": (2,), "strides": (2**60,)},
    "back": {"shape": (2,), "strides": (-1,)},
    "backwards": {"offset": 3, "shape": (2,), "strides": (-1,)},
    "negative shape": {"shape": (-2,)},
    "huge": {"shape": (2**62, 2**62), "strides": (0, 0)},
    "a product that is 0 in 64 bits": {"shape": (2**32 + 1,), "strides": (2**30,)},
    "beyond 64 bits": {"shape": (2**70,), "strides": (0,)},
    "double": {"shape": (3,), "storage": b"ctorch\nDoubleStorage\n"},
    "no storage": {"key": "7"},
    "ranks": {"shape": (1, 1)},
    "fractions": {"shape": (1.0,)},
    "true": {"offset": True},
    "of no storage": {"storage": b"ctorch._utils\n_rebuild_tensor_v2\n"},
    "negated": {"rest": (False, None, {"neg": True})},
}


@pytest.mark.parametrize("wrong", BEYOND.values(), ids=BEYOND)
def test_a_tensor_stays_inside_its_storage(tmp_path, wrong):
    refusal(archive(tmp_path / "x.pt", state(("w", view(**wrong)))))


def test_a_storage_that_is_not_there(tmp_path):
    assert "lacks 'data/../data.pkl', which holds 'w';" in refusal(
        archive(tmp_path / "x.pt", state(("w", view(key="../data.pkl"))))
    )


def test_a_tensor_of_no_dtype(tmp_path):
    pickled = state(("w", view(storage=b"ctorch.storage\nUntypedStorage\n")))
    assert "'w' is of no dtype; convert" in refusal(archive(tmp_path / "x.pt", pickled))


def test_a_tensor_may_fill_its_storage(tmp_path):
    found = interop.open_tensors(archive(tmp_path / "x.pt", state(("w", view(1, (2, 2), (1, 1))))))
    assert found["w"].tolist() == [[2, 3], [3, 4]]
    found = interop.open_tensors(archive(tmp_path / "x.pt", state(("w", view(0, (9, 0), (1, 1))))))
    assert found["w"].shape == (9, 0)


class Runs:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Restores:
    """Pickles into an object with __setstate__, which makes the file MARKER."""

    def __setstate__(self, state):
        pathlib.Path("MARKER").touch()

    def __getstate__(self):
        return {"a": 1}


def touch(directory="."):
    (pathlib.Path(directory) / "MARKER").touch()


def hostile():
    """Pickles that make the file MARKER where pickle itself loads them, and what they are refused by."""
    command, code = "touch MARKER", "open('MARKER', 'w')"
    system = f"{os.system.__module__}.system"
    calls = {system: Runs(os.system, command), "builtins.eval": Runs(eval, code), f"{__name__}.touch": Runs(touch)}
    for protocol in range(6):
        for name, value in (calls | {f"{__name__}.Restores": Restores()}).items():
            named = name.replace("builtins", "__builtin__") if protocol < 3 else name
            named = "copy_reg._reconstructor" if protocol < 2 and "Restores" in name else named
            yield f"{name} {protocol}", pickle.dumps({"w": value}, protocol), named
    yield "GLOBAL", b"cos\nsystem\n(S'touch MARKER'\ntR.", "os.system"
    yield "INST", b"(S'touch MARKER'\nios\nsystem\n.", "os.system"
    yield "OBJ", b"(cos\nsystem\nS'touch MARKER'\no.", "os.system"
    yield "dots", b"\x80\x04" + put("os") + put("path.os.system") + b"\x93(" + put("touch MARKER") + b"tR.", "os.path.os.system"
    yield "partial", pickle.dumps(Runs(functools.partial, os.system, "touch MARKER"), 4), "functools.partial"


@pytest.mark.parametrize(("pickled", "named"), [each[1:] for each in hostile()], ids=[each[0] for each in hostile()])
def test_nothing_is_run(tmp_path, monkeypatch, pickled, named):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled)
    if marks := (tmp_path / "MARKER").exists():
        (tmp_path / "MARKER").unlink()
    assert marks != (named == "functools.partial")  # the pickle does what it is for
    message = refusal(archive(tmp_path / "x.pt", pickled))
    assert message.startswith(f"{tmp_path / 'x.pt'} holds {named!r}, which is not a tensor; nothing of it was run; save")
    assert not (tmp_path / "MARKER").exists()


KNOWN = b"ctorch\nSize\n"
FORGED = {  # what the names that are known could be turned into
    "attributes of a function": KNOWN + put({"make": 1}) + b"b",
    "slots of a function": KNOWN + b"(N" + put({"make": 1}) + b"tb",
    "attributes of a dtype": b"ctorch\nfloat32\n" + put({"dtype": 1}) + b"b",
    "attributes of a tensor": view() + put({"offset": 9}) + b"b",
    "slots of a tensor": view() + b"(N" + put({"offset": 9}) + b"tb",
    "items of a tensor": view() + put(1) + put(9) + b"s",
    "an instance": b"\x80\x02" + KNOWN + b")\x81",
    "an instance by keywords": b"\x80\x04" + KNOWN + b")}\x92",
    "a call of a dtype": b"ctorch\nfloat32\n)R",
    "a call of a tensor": view() + b")R",
    "a call of a dict": b"})R",
    "a storage by name": b"Psome\n",
    "a storage of nothing": b")Q",
    "a length beyond the end": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00",
}


@pytest.mark.parametrize("opcodes", FORGED.values(), ids=FORGED)
def test_known_names_cannot_be_changed(tmp_path, opcodes):
    message = refusal(archive(tmp_path / "x.pt", b"}" + put("w") + view() + b"s" + opcodes + b"."))
    assert "is not a whole archive" in message
    assert recorded("parameter")["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("opcodes", [b"\x80\x02Nr\xff\xff\xff\x7f.", b"Np2147483647\n."], ids=["LONG_BINPUT", "PUT"])
def test_a_pickle_cannot_ask_for_memory(tmp_path, opcodes):
    assert re.search(r"its pickle holds (LONG_BIN)?PUT\b", refusal(archive(tmp_path / "x.pt", opcodes)))


def test_registered_extensions_are_not_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension(__name__, "touch", 200)
    try:
        assert pickle.loads(b"\x80\x02\x82\xc8.") is touch  # from now on pickle asks nobody for it
        assert "EXT1" in refusal(archive(tmp_path / "x.pt", b"\x80\x02\x82\xc8)R."))
    finally:
        copyreg.remove_extension(__name__, "touch", 200)
    assert not (tmp_path / "MARKER").exists()


def test_names_of_several_lines(tmp_path):
    name = "a\nb\x1b[31m"
    assert repr(name) in refusal(archive(tmp_path / "x.pt", state((name, view(9)))))
    safetensors.numpy.save_file({name: np.zeros(2, ml_dtypes.float8_e4m3fn)}, tmp_path / "x.safetensors")
    assert repr(name) in refusal(tmp_path / "x.safetensors")


def test_a_dict_inside_itself(tmp_path):
    refusal(archive(tmp_path / "x.pt", b"}q\0" + put("w") + b"h\0s."))


def test_two_tensors_of_one_name(tmp_path):
    nested = b"}" + put("b") + view() + b"s"
    assert "two tensors of one name" in refusal(archive(tmp_path / "x.pt", state(("a", nested), ("a.b", view()))))


def test_archives_of_another_make(tmp_path):
    good = state(("w", view()))
    assert "'big', not 'little'" in refusal(archive(tmp_path / "x.pt", good, byteorder="big"))
    assert "compressed" in refusal(archive(tmp_path / "x.pt", good, compression=zipfile.ZIP_DEFLATED))
    whole = archive(tmp_path / "x.pt", good).read_bytes()
    start = whole.index(b"PK\3\4", whole.index(b"archive/data.pkl"))
    (tmp_path / "x.pt").write_bytes(whole[:start] + b"XX" + whole[start + 2 :])  # the storage's own header
    assert "archive/data/0 is not where the archive says" in refusal(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/other", "")
    refusal(tmp_path / "x.pt")


# damage


def damaged(content, seed=0):
    """Every beginning of a file, and 300 copies with one byte changed."""
    yield from (content[:length] for length in range(len(content)))
    draw = random.Random(seed)
    for _ in range(300):
        place = draw.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.safetensors.index.json"])
def test_damaged_files(tmp_path, name):
    source = tmp_path / f"whole.{name}"
    write(source, "first", "b", "third") if name != "x.pt" else shutil.copy(RECORDED / "views.pt", source)
    content, count, refused = source.read_bytes(), len(interop.open_tensors(source)), 0
    for number, damage in enumerate(damaged(content)):
        path = tmp_path / f"{number}.{name}"
        path.write_bytes(damage)
        try:
            found = interop.open_tensors(path)
        except (DataError, ConfigError):
            refused += 1
        else:
            assert number >= len(content)  # no beginning of a file passes for it
            assert all(array.flat[:4].size <= 4 for array in found.values())
            assert 0 < len(found) <= count
        path.unlink()
    assert refused > len(content)
