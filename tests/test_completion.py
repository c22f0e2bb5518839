"""Completion: bash, with the script that is printed, completes commands, flags, their values and paths."""

import shutil
import subprocess

import pytest

from jaxdiff.app import cli

ASK = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jaxdiff; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "jaxdiff.bash"
    path.write_text(printed.getvalue())
    return path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sam"], {"sample"}),
        ([""], {*cli.COMMANDS, "--help", "--version"}),
        (["sample", "--samp"], {"--sampler"}),
        (["sample", "runs/x", "--sampler", "dpmpp_2"], {"dpmpp_2m", "dpmpp_2m_sde"}),
        (["train", "configs/digits.py", "--model.ch"], {"--model.channels"}),
        (["train", "configs/digits.py", "--objective", "v"], {"vae"}),
        (["train", "configs/digits_e"], {"configs/digits_elbo.py"}),
        (["train", "cifar10_c"], {"cifar10_consistency", "cifar10_consistency_training"}),
        (["recipes", "copy", "mnist_v"], {"mnist_vae", "mnist_vq"}),
        (["sample", "conf"], {"configs"}),
        (["plan", "configs/digits.py", "--what", ""], {"train", "sample"}),
        (["doctor", "--qu"], {"--quiet"}),
        (["latents", "--device", "t"], {"tpu"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes(script, words, found):
    bash = shutil.which("bash")
    assert bash
    child = subprocess.run([bash, "-c", ASK, "bash", str(script), "jaxdiff", *words], capture_output=True, text=True, check=True)
    assert set(child.stdout.split()) == found
    assert child.stderr == ""


def test_zsh_and_fish_have_the_same_words(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert cli.main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "complete -c jaxdiff -n __fish_use_subcommand -f -a sample" in lines
    assert any("from sample' -l sampler -x -a 'ddim dpmpp_2m" in line for line in lines)
    assert "complete -c jaxdiff -n '__fish_seen_subcommand_from completion' -x -a 'bash zsh fish'" in lines
    assert any("from train plan ladder copy' -a 'cifar10 " in line for line in lines)
