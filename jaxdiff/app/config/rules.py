"""What the fields of a config must be, where their types do not say enough: names, rules, and whether these hold."""

from collections.abc import Iterator
from dataclasses import fields

from jaxdiff.app.config import distillation
from jaxdiff.app.config.averages import average_rules
from jaxdiff.app.config.distillation import Distillation, Ladder, uses_discrete_levels
from jaxdiff.app.config.dit import dit_rules
from jaxdiff.app.config.field_types import DENOISERS, FAMILIES, STUDENTS
from jaxdiff.app.config.fields import Experiment
from jaxdiff.app.config.flow import flow_rules
from jaxdiff.app.config.matching import matching_rules
from jaxdiff.app.config.published import Published
from jaxdiff.app.config.text import text_rules

Rules = Iterator[tuple[str, str, object]]

ENCODERS = ("vae", "autoencoder")
ENCODER_OPTIONS = {"groups", "epsilon", "attention_levels"}  # of published
READ = {  # fields of distillation by the objective that reads them
    "diffusion": {"lora_rank"},
    "guided": {"guidance", "clip", "lora_rank"},
    "progressive": {"guidance", "clip", "steps", "final_steps", "spacing", "every_level"},
    "consistency": {field.name for field in fields(Distillation)} - {"final_steps", "every_level"},
    "flow_map": {"guidance", "clip", "target", "target_ema"},
    "distribution_matching": {"guidance", "clip", "steps", "spacing"},
}
UNREAD = {"continuous": {"solver", "weight", "distance", "target_ema", "skip"}, "shrinking": {"skip", "draw"}}  # by the curriculum


def rules(c: Experiment) -> Rules:
    """The rules of a run's config, in the order in which they are checked."""
    m, s, d = c.model, c.sampling, c.diffusion
    height, width, channels = c.data.image_shape
    halvings, this = len(m.multipliers) - 1, with_article(c.objective)
    factor = 1 if m.network == "dit" else 2**halvings
    on_pixels = not c.sources.autoencoder  # else the latents' sizes count, which the autoencoder's run says
    yield "seed", "below 2^32", c.seed < 2**32
    yield "model.multipliers", "at least one number, each at least 1", m.multipliers and min(m.multipliers) > 0
    yield "data.image_shape", "three positive numbers", min(height, width, channels) > 0
    halved = f"divisible by {factor}, as each of the {halvings + 1} model.multipliers but one halves it"
    yield "data.image_shape", halved, not on_pixels or height % factor == width % factor == 0
    yield from average_rules(c, this)
    sizes = {height // 2**level for level in range(halvings + 1)}
    yield "model.attention", f"sizes that the network has: {sorted(sizes)}", not on_pixels or set(m.attention) <= sizes
    yield "evaluation.num", "0 or at least 10", c.evaluation.num == 0 or c.evaluation.num >= 10
    yield "sampling.eta", "0 for a sampler that is not ddim or flow_map", s.sampler in ("ddim", "flow_map") or s.eta == 0
    yield "sampling.classifier_scale", "1 unless sampling.classifier names a run", s.classifier or s.classifier_scale == 1
    denoises = c.objective in DENOISERS
    yield "sampling.every", f"0 for {this}, which draws no samples while it trains", denoises or s.every == 0
    for name in ("dropout", "fourier", "heads", "transformer", "context_channels"):
        known = denoises or (name == "dropout" and c.objective == "classifier") or (name == "heads" and c.objective in ENCODERS)
        yield f"model.{name}", f"not set for {this}, whose network has none", known or not getattr(m, name)
    yield from _published_rules(c)
    yield from text_rules(c, this)
    yield from dit_rules(c)
    yield "sampling.classifier", "empty for all but denoisers", denoises or not s.classifier
    yield "evaluation.num", f"0 for {this}, which has no labels", c.objective not in ENCODERS or not c.evaluation.num
    yield from _steps_per_call_rules(c)
    yield from _source_rules(c)
    yield from _distillation_rules(c)
    learned = d.schedule == "learned"
    yield "diffusion.schedule", f"a fixed one for {this}", not learned or c.objective == "diffusion"
    yield "diffusion.weight", "elbo with a learned schedule, which lowers its variance", not learned or d.weight == "elbo"
    within = d.sampling_schedule in ("", "linear_logsnr") or d.schedule not in ("learned", "linear_logsnr")
    yield "diffusion.sampling_schedule", "empty or linear_logsnr: training saw no levels beyond its ends", within
    walkable = d.schedule != "lognormal" or d.sampling_schedule
    yield "diffusion.sampling_schedule", "set (to karras, say) when training draws lognormal levels", walkable
    for chain in ("linear_zero_snr", *(["betas"] if c.betas.zero_terminal_snr else [])):
        says = d.prediction not in ("noise", "score") or chain not in (d.schedule, d.sampling_schedule)
        yield "diffusion.prediction", f"v, x0, velocity or edm on {chain}: at its end x is noise, whatever x0 is", says
    alike = d.prediction == "edm" or FAMILIES[d.sampling_schedule or d.schedule] == FAMILIES[d.schedule]
    family = f"of the family of {d.schedule}, unless the prediction is edm: the network has not seen such inputs"
    yield "diffusion.sampling_schedule", family, alike


def _published_rules(c: Experiment) -> Rules:
    """What the options of published networks, and discrete chains, allow."""
    m, p, b, s, levels = c.model, c.published, c.betas, c.sampling, len(c.model.multipliers)
    readers = {"autoencoder": ENCODER_OPTIONS, "vae": ENCODER_OPTIONS, "classifier": set(), "text": set()}
    for field in fields(Published):
        read = c.objective in DENOISERS or field.name in readers[c.objective]
        untouched = read or getattr(p, field.name) == field.default
        yield f"published.{field.name}", f"left as it is: {with_article(c.objective)} does not read it", untouched
    yield (
        "published.attention_levels",
        f"numbers below {levels}, the first level is 0",
        set(p.attention_levels) <= set(range(levels)),
    )
    yield "published.attention_levels", "empty where model.attention names image sizes", not (m.attention and p.attention_levels)
    per_level = not p.transformer_depths or (len(p.transformer_depths) == levels and not m.transformer)
    yield "published.transformer_depths", f"empty, or {levels} numbers and model.transformer 0", per_level
    yield "published.padding", "(0, 1) or (1, 1), which halve the image", p.padding in ((0, 1), (1, 1))
    yield "published.boundary", "0 unless the prediction is edm", not p.boundary or c.diffusion.prediction == "edm"
    told = p.told != "logsnr" and c.objective == "diffusion" and m.num_classes and not m.context_channels
    unguided = not told or c.diffusion.label_dropout or s.guidance == 1 or s.classifier
    yield "sampling.guidance", "1: the published network has no label that says none", unguided
    learned = p.learned_variance and c.objective == "diffusion"
    yield "sampling.sampler", "another: ddpm_learned wants published.learned_variance", learned or s.sampler != "ddpm_learned"
    yield "betas.listed", "given with kind listed, and only with it", (b.kind == "listed") == bool(b.listed)
    yield "betas.listed", "numbers above 0 and at most 1", all(0 < beta <= 1 for beta in b.listed)
    yield "betas.first", f"above 0 and at most betas.last, {b.last:g}", 0 < b.first <= b.last
    ours = s.spacing in ("time", "logsnr", "karras", "quadratic")
    chain = c.diffusion.sampling_schedule or c.diffusion.schedule
    yield "sampling.spacing", "one of time, logsnr, karras, quadratic, or the schedule betas", ours or chain == "betas"
    num = 50 if s.spacing == "lcm" else len(b.listed) or b.num
    yield "sampling.steps", f"at most {num}, the time steps of {s.spacing}", ours or s.steps <= num


def between_calls(c: Experiment) -> dict[str, int]:
    """Names and intervals of what happens between steps, whose divisors `steps_per_call` may be; 0 is never."""
    between = {"steps": c.steps, "log_every": c.log_every, "checkpoint_every": c.checkpoint_every}
    return {**between, "sampling.every": c.sampling.every, "steps of a round": distillation.round_steps(c)}


def _steps_per_call_rules(c: Experiment) -> Rules:
    """Nothing may happen between steps that one call does."""
    size = c.steps_per_call or 1
    yield "steps_per_call", "0 or 1 under pmap", size == 1 or c.mesh.mapping == "jit"
    for name, every in between_calls(c).items():
        yield "steps_per_call", f"a divisor of {name}, {every}", every % size == 0


def _source_rules(c: Experiment) -> Rules:
    """What the runs that a run starts from allow."""
    a, s, this = c.autoencoder, c.sources, with_article(c.objective)
    diffusion, compresses = c.objective in DENOISERS, c.objective == "autoencoder"
    yield "sources.autoencoder", f"empty for {this}", diffusion or not s.autoencoder
    yield "sources.base", f"empty for {this}", diffusion or not s.base
    yield "sources.features", f"empty for {this}", compresses or not s.features
    wants = compresses and a.perceptual > 0
    yield "sources.features", "given with autoencoder.perceptual, and only with it", wants == bool(s.features)
    averaged = a.codebook and (c.mesh.mapping == "pmap" or c.optimizer.accumulate > 1)
    yield "autoencoder.codebook", "0 under pmap or accumulation, which would average revived codes", not averaged
    latent, factor = bool(s.autoencoder), c.cascade.factor
    yield "sampling.clip", "False in latent space, whose values have no bounds", not latent or not c.sampling.clip
    yield "sources.autoencoder", "empty in a cascade: its models work on pixels", not latent or factor == 1
    yield "sampling.classifier", "empty in latent space", not latent or not c.sampling.classifier
    yield "data.latents", "empty without sources.autoencoder, whose latents it holds", latent or not c.data.latents
    yield "sources.base", "given with cascade.factor above 1, and only with it", (factor > 1) == bool(s.base)
    height, width, channels = c.data.image_shape
    yield "diffusion.schedule", "a fixed one in a cascade", factor == 1 or c.diffusion.schedule != "learned"
    yield "data.image_shape", f"divisible by cascade.factor {factor}", height % factor == width % factor == 0
    most = c.cascade.max_augmentation
    yield "cascade.augmentation", "at most cascade.max_augmentation, which training has seen", c.cascade.augmentation <= most
    context, labels = c.model.context_channels, c.model.num_classes
    drawn = not context or c.sampling.prompts or not c.sampling.every
    yield "sampling.every", "0 without sampling.prompts, of which the network draws", drawn
    kept = not context or s.text or not c.data.latents
    yield "data.latents", "empty with context vectors of the data set: a cache keeps none", kept
    yield "model.num_classes", "at least 1 for a classifier", labels or c.objective != "classifier"
    judged = labels or context or not c.evaluation.num
    yield "evaluation.num", "0 without classes or context: there are no labels to judge by", judged
    begins = not (compresses and a.adversarial) or a.adversarial_start < c.steps
    yield "autoencoder.adversarial_start", f"below steps, {c.steps}, or the discriminator never begins", begins
    visible = not s.features.endswith(".npz") or (min(height, width) >= 16 and channels in (1, 3))
    yield "data.image_shape", "of 1 or 3 channels and at least 16 pixels for features of VGG16", visible
    attends = c.model.transformer or any(c.published.transformer_depths) or c.model.network == "dit"
    yield "model.context_channels", "0 without model.transformer blocks to attend to them", not context or attends
    alone = c.objective == "diffusion" or (c.objective in distillation.SELF_TAUGHT and c.distillation.target == "data")
    yield "sources.init", f"empty for {this}, but one that is trained on data alone", alone or not s.init
    yield "diffusion.schedule", "a fixed one with sources.init", c.diffusion.schedule != "learned" or not s.init


def _distillation_rules(c: Experiment) -> Rules:
    """What the objective of a student allows, and what it leaves for others."""
    d, sampler, objective = c.distillation, c.sampling.sampler, c.objective
    yield "sources.teacher", "empty without an objective that distils", objective in STUDENTS or not c.sources.teacher
    consistent, matched = objective == "consistency", objective == "distribution_matching"
    published = objective == "diffusion" and c.published.told == "step"  # which a LoRA may make one (Luo et al. 2023b)
    yield (
        "sampling.sampler",
        "another: consistency samples consistency students",
        consistent or matched or published or sampler != "consistency",
    )
    alone = "another: overshoot samples progressive students trained with distillation.every_level"
    yield "sampling.sampler", alone, sampler != "overshoot" or (objective == "progressive" and d.every_level)
    what = f"{d.curriculum} consistency" if consistent else f"the objective {objective}"
    unread = {field.name for field in fields(d)} - READ.get(objective, set()) | UNREAD.get(d.curriculum, set())
    for field in fields(d):
        untouched = field.name not in unread or getattr(d, field.name) == field.default
        yield f"distillation.{field.name}", f"left as it is: {what} does not read it", untouched
    adapts = objective != "diffusion" or not d.lora_rank or c.sources.init
    yield "distillation.lora_rank", "0 without sources.init, which it adapts", adapts
    if objective in STUDENTS:
        yield from _student_rules(c)
    if objective == "progressive":
        yield from _progressive_rules(c)
    if consistent:
        yield from _consistency_rules(c)
    yield from flow_rules(c, objective == "flow_map")
    yield from matching_rules(c, matched)
    if uses_discrete_levels(c):
        steps = distillation.sampling_steps(c)
        listed = f"one of {', '.join(map(str, steps))}: the student was trained on levels of these numbers of steps"
        yield "sampling.steps", listed, c.sampling.steps in steps
        yield "sampling.spacing", f"{d.spacing}, of the levels that the student was trained on", c.sampling.spacing == d.spacing
        yield "sampling.eta", "0 for a student of a list of levels", c.sampling.eta == 0


def _student_rules(c: Experiment) -> Rules:
    d, teacher, scale = c.distillation, c.sources.teacher, c.sampling.guidance
    low, high = d.guidance
    taught, plain = d.target == "teacher", d.guidance == (1.0, 1.0)
    yield "sources.teacher", f"a run or a recipe to distil: {c.objective} learns from it", teacher or not taught
    yield "distillation.guidance", "two scales, the lower first, at least 0", 0 <= low <= high
    yield "distillation.guidance", "1 1 without a teacher to guide", plain or taught or c.objective == "flow_map"
    yield "distillation.guidance", "1 1 without classes or context", plain or c.model.num_classes or c.model.context_channels
    yield "cascade.factor", "1 for a student", c.cascade.factor == 1
    yield "distillation.clip", "False in latent space, whose values have no bounds", not (c.sources.autoencoder and d.clip)
    yield "distillation.lora_rank", "0 without sources.teacher, which it adapts", not d.lora_rank or teacher
    inside = f"{low:g}" if low == high else f"between {low:g} and {high:g}"
    yield "sampling.guidance", f"{inside}, the guidance that the student was trained with", low <= scale <= high


def _progressive_rules(c: Experiment) -> Rules:
    d, rounds = c.distillation, distillation.num_rounds(c)
    yield "distillation.steps", "a power of two, at least 2", d.steps > 1 and _power_of_two(d.steps)
    fewer = d.final_steps < d.steps and _power_of_two(d.final_steps)
    yield "distillation.final_steps", f"a power of two below distillation.steps, {d.steps}", fewer
    yield "steps", f"divisible by the {rounds} rounds from {d.steps} steps to {d.final_steps}", c.steps % rounds == 0
    yield "sampling.sampler", "ddim (or overshoot) for a progressive student", c.sampling.sampler in ("ddim", "overshoot")
    yield "sampling.every", "0 for a progressive student, whose rounds are sampled at their ends", c.sampling.every == 0


def _consistency_rules(c: Experiment) -> Rules:
    d = c.distillation
    yield "sampling.sampler", "consistency for a consistency student", c.sampling.sampler == "consistency"
    yield "sampling.classifier", "empty for a consistency student, whose x0 is no mean to shift", not c.sampling.classifier
    growing = d.curriculum in ("doubling", "square_root")
    yield "distillation.first_steps", "between 1 and distillation.steps", not growing or d.first_steps <= d.steps
    times = d.steps % d.first_steps == 0 and _power_of_two(d.steps // d.first_steps)
    yield "distillation.steps", f"first_steps, {d.first_steps}, times a power of two", d.curriculum != "doubling" or times
    named = not d.target_ema or d.target_ema in c.ema
    yield "distillation.target_ema", f"empty or the name of an EMA: {', '.join(c.ema)}", named
    circle = d.curriculum != "continuous" or c.diffusion.schedule in ("cosine", "linear", "linear_logsnr")
    yield "diffusion.schedule", "variance preserving (cosine, say) for continuous consistency", circle


def ladder_rules(c: Ladder) -> Rules:
    """The rules of a ladder."""
    yield "students", "at least one recipe (.py)", c.students and all(name.endswith(".py") for name in c.students)
    yield "calls", "at least one number, each at least 1", c.calls and min(c.calls) > 0
    yield "num", "at least 10, and at least shown", c.num >= max(10, c.shown)
    yield "guidance", "at least one scale, each at least 1", c.guidance and min(c.guidance) >= 1


def with_article(objective: str) -> str:
    """The objective after its article."""
    return f"an {objective}" if objective[0] in "aeiou" else f"a {objective}"


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
