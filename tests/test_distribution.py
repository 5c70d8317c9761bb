"""Distribution matching: its score, who learns when, ranks, resuming, and prompts without clips."""

import csv
import re
from dataclasses import replace

import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.data import prompt_pool
from animatediff_lightning.distill.engine import distributed
from animatediff_lightning.distill.miniature.shipped import motion_module
from animatediff_lightning.distill.train import (
    batches,
    checks,
    distribution,
    iterate,
    setup,
    stages,
    trajectory,
)
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train.phase import PhaseTrainer
from animatediff_lightning.distill.train.run_folder import Place
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.module import MotionModule
from animatediff_lightning.samplers import prediction, schedule
from safetensors.torch import load_file

from . import distil_files
from .distil_files import copied, same
from .processes import together

CPU = torch.device("cpu")
STAGES = """
[[stages]]
teacher_steps = 4
student_steps = 2
loss = "distribution"
cfg = 2.5
ema = 0.5
no_caption = 0.2

[[stages.phases]]
loss = "mse"
iterations = 2
learning_rate = 1e-3

[[stages.phases]]
iterations = 3
learning_rate = 1e-3
fake_steps = 2
fake_head_start = 1
"""
FIGURES = ("loss_g", "norm_g", "loss_fake", "norm_fake", "error_of_fake", "error_of_teacher")


def write_config(file, out, clips, **options):
    """Write a config with one stage of MSE, then distribution; every checkpoint stays."""
    text = distil_files.write_config(file, out, clips, **options).read_text()
    text = text.replace("keep = 2", "keep = 9")
    file.write_text(text[: text.index("[[stages]]")] + STAGES)
    return file


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The folder of a whole run, and its config."""
    return distil_files.train(write_config, tmp_path_factory.mktemp("run"), clips)


def curve(folder):
    with (folder / "curves.csv").open() as source:
        return [{k: r[k] for k in ("phase", "iteration", *FIGURES)} for r in csv.DictReader(source)]


# ---- the score ---------------------------------------------------------------------------------


def test_the_true_score_of_renoised_landings_has_the_least_error():
    """Of a world that holds one clip: every landing y = alpha_s x0 + sigma_s e of it is known."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 1, 1, 1, 1, generator=generator).expand(20_000, -1, -1, -1, -1)
    e, noise = torch.randn(2, 20_000, 1, 1, 1, 1, generator=generator)
    landed, to = torch.full((20_000,), 249), [600] * 20_000
    y = prediction.forward(x0, e, landed)
    x, tau = trajectory.renoise(y, landed, to, noise)
    alpha, sigma = prediction.coefficients(tau, x)
    true = (x - alpha * x0) / sigma
    errors = [
        distribution.score_error(c * true, landed, tau, noise).item() for c in (0.9, 1.0, 1.1)
    ]
    assert errors[1] < min(errors[0], errors[2])


def test_landings_are_noised_above_where_they_land_and_never_beyond_their_start():
    stage = train_config.Stage(
        teacher_steps=8,
        student_steps=4,
        loss="distribution",
        phases=(train_config.Phase(iterations=1),),
    )
    starts = trajectory.start_positions(stage)
    ranges = [trajectory.noise_range(stage, p) for p in starts]
    assert ranges == [(799, 999), (549, 749), (299, 499), (19, 249)]
    for position, (low, high) in zip(starts, ranges, strict=True):
        drawn = [
            batches.draw_sample(
                stage.model_copy(update={"timesteps": (int(position),)}),
                stage.phases[0],
                False,
                torch.Generator().manual_seed(seed),
            ).renoise
            for seed in range(200)
        ]
        assert low <= min(drawn) < low + 20
        assert high - 20 < max(drawn) <= high


def test_all_walks_have_as_many_points_and_end_where_the_step_starts():
    walks = [trajectory.walk(p, 4) for p in (1000, 750, 500, 250)]
    assert walks == [
        [1000, 1000, 1000, 1000],
        [1000, 750, 750, 750],
        [1000, 750, 500, 500],
        [1000, 750, 500, 250],
    ]


# ---- who learns when -----------------------------------------------------------------------------


class Half:
    """The phase with a fake of a config, set up to take single updates."""

    def __init__(self, file, **changes):
        config = train_config.read_config(file)
        stage = config.stages[0].model_copy(update=changes)
        self.config = config.model_copy(update={"stages": (stage,)})
        self.setup = setup.load_setup(train_config.read_config(file), CPU, resume=True)
        object.__setattr__(self.setup, "config", self.config)
        self.context = stages.start_stage(self.setup, 0)
        training = self.context.__enter__()
        training.fake = training.make_fake()
        self.student, self.fake, self.place = training.student, training.fake, Place(0, 1, 0)
        self.networks = training.networks(self.place)
        self.trainer = PhaseTrainer(self.networks)
        ahead = iterate.read_ahead(self.setup, self.place)
        self.batches = ahead(0)
        ahead.close()

    def weights(self):
        bases = {id(b.unet): b for b in self.setup.bases.values()}.values()
        return {
            "student": copied(self.student),
            "fake": copied(self.fake.motion_module),
            "teacher": copied(self.networks.real),
            "bases": {
                f"{i}.{k}": v for i, b in enumerate(bases) for k, v in copied(b.unet).items()
            },
        }

    def learn_fake(self):
        with self.networks.critic_learns():
            self.trainer._backward(self.networks.fake, self.batches, distribution.fake_of_batch)

    def learn_student(self):
        self.fake.requires_grad_(False)
        figures, _ = self.trainer._backward(
            self.networks.student, self.batches, distribution.distribution_of_batch
        )
        return figures

    def close(self):
        self.context.__exit__(None, None, None)


@pytest.fixture
def half(undisturbed):
    half = Half(undisturbed[1])
    yield half
    half.close()


@pytest.mark.slow
def test_the_fakes_half_changes_the_fake_alone(half):
    before = half.weights()
    half.learn_fake()
    half.trainer._optimize("critic", 0, 1e-3)
    after = half.weights()
    assert not same(before["fake"], after["fake"])
    for part in ("student", "teacher", "bases"):
        assert same(before[part], after[part]), part
    assert all(p.grad is None for p in half.student.parameters())


@pytest.mark.slow
def test_the_students_half_changes_the_student_alone(half):
    before = half.weights()
    figures = half.learn_student()
    half.trainer._optimize("student", 0, 1e-3)
    after = half.weights()
    assert not same(before["student"], after["student"])
    for part in ("fake", "teacher", "bases"):
        assert same(before[part], after[part]), part
    assert figures["error_of_fake"] == pytest.approx(figures["error_of_teacher"])  # one module yet


@pytest.mark.slow
def test_a_student_whose_fake_says_what_the_teacher_says_does_not_move(undisturbed):
    half = Half(undisturbed[1], real_cfg=1.0, fake_start="teacher")
    half.learn_student()
    assert all(not p.grad.any() for p in half.student.parameters())
    half.close()


@pytest.mark.slow
def test_guidance_of_the_real_score_moves_the_student(half):
    half.learn_student()
    assert any(p.grad.any() for p in half.student.parameters())


@pytest.mark.slow
def test_the_share_of_mse_is_added_to_the_gradient(undisturbed):
    """Measured where the fake repeats the real score, so that their difference says nothing."""
    alone = Half(undisturbed[1], real_cfg=1.0, fake_start="teacher")
    phase = alone.networks.phase
    gradients = []
    for weight in (1.0, 3.0):
        alone.networks.phase = phase.model_copy(update={"mse_weight": weight})
        figures = alone.learn_student()
        gradients.append(torch.cat([p.grad.flatten() for p in alone.student.parameters()]))
        for weights in alone.student.parameters():
            weights.grad = None
    alone.close()
    assert figures["mse"] > 0
    one, three = gradients
    assert (3 * one - three).norm() <= 1e-4 * three.norm() > 0


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_a_student_that_tells_its_loss_and_a_curve(undisturbed):
    folder, _ = undisturbed
    student = checkpoint.load(folder / "students" / "2step.safetensors")
    assert student.metadata["loss"] == "distribution"
    assert student.steps == 2
    rows = curve(folder)
    assert [(r["phase"], r["iteration"]) for r in rows] == [
        *(("0", str(i)) for i in range(2)),
        *(("1", str(i)) for i in range(3)),
    ]
    assert not any(r["loss_fake"] for r in rows[:2])
    assert all(r["loss_fake"] for r in rows[2:])
    assert not rows[2]["loss_g"]  # the fake's head start
    assert all(r["error_of_fake"] and r["error_of_teacher"] for r in rows[3:])


@pytest.mark.slow
def test_a_student_may_start_as_a_distilled_one_and_its_real_score_stays_undistilled(
    undisturbed, clips, tmp_path
):
    started = undisturbed[0] / "students" / "2step.safetensors"
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    file.write_text(file.read_text().replace("cfg = 2.5", f'cfg = 2.5\nstart = "{started}"'))
    config = train_config.read_config(file)
    with stages.start_stage(setup.load_setup(config, CPU, resume=True), 0) as training:
        assert same(copied(training.student), load_file(started))
        training.start_phase(Place(0, 1, 0))
        assert same(copied(training.networks(Place(0, 1, 0)).real), load_file(motion_module()))


def test_a_start_that_is_no_version_of_the_teacher_is_told(clips, tmp_path):
    other = checkpoint.load(motion_module())
    narrow = MotionModule(replace(other.config, max_frames=other.config.max_frames // 2))
    checkpoint.save(narrow, tmp_path / "other.safetensors")
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    text = file.read_text().replace(
        "cfg = 2.5", f'cfg = 2.5\nstart = "{tmp_path}/other.safetensors"'
    )
    file.write_text(text)
    with pytest.raises(train_config.ConfigError, match="built unlike the teacher"):
        checks.check(train_config.read_config(file), world_size=1)
    file.write_text(text.replace("other.safetensors", "none.safetensors"))
    with pytest.raises(train_config.ConfigError, match=r"none\.safetensors"):
        checks.check(train_config.read_config(file), world_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("left", [Place(0, 0, 1), Place(0, 1, 1), Place(0, 1, 2)])
def test_it_goes_on_anywhere_to_the_same_bits(undisturbed, tmp_path, left):
    folder, _ = undisturbed
    again = distil_files.cut_and_go_on(undisturbed, tmp_path, left, "2step")
    assert curve(again) == curve(folder)
    students = [load_file(f / "students" / "2step.safetensors") for f in (folder, again)]
    assert same(*students)


@pytest.mark.slow
def test_checkpointing_changes_nothing_but_memory(undisturbed, clips, tmp_path):
    """What is computed anew on the way back must meet the same motion module: the fake's, too."""
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, checkpointing=True)
    assert main(["train", str(file), "--device", "cpu"]) == 0
    for plain, found in zip(curve(undisturbed[0]), curve(tmp_path / "out"), strict=True):
        for name in FIGURES:
            wanted = float(plain[name] or 0)
            assert float(found[name] or 0) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def gradients_on(world_size, file, folder):
    """Return the gradients of fake and student for one global batch, by rank."""

    def work(rank):
        distributed.start(CPU)
        half = Half(file)
        half.learn_fake()
        grads = {f"fake.{k}": p.grad.clone() for k, p in half.fake.named_parameters()}
        half.learn_student()
        grads |= {f"student.{k}": p.grad for k, p in half.student.named_parameters()}
        torch.save(grads, folder / f"{world_size}-{rank}.pt")
        distributed.stop()

    together(world_size, work)
    return [torch.load(folder / f"{world_size}-{r}.pt") for r in range(world_size)]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_global_batch_has_the_same_gradient_on_1_2_3_and_4_processes(clips, tmp_path):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, slots=12, global_batch=12)
    found = {n: gradients_on(n, file, tmp_path) for n in (1, 2, 3, 4)}
    (alone,) = found[1]
    for several in found.values():
        for grads in several:
            for name, gradient in alone.items():
                torch.testing.assert_close(grads[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_prompts_are_enough_and_the_card_tells_the_method(clips, tmp_path):
    prompts = tmp_path / "captions.txt"
    prompts.write_text("a red fish swimming left\na big blue bird flying up\n\n")
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    text = file.read_text()
    text = re.sub(r'shards = "[^"]*"', f'prompts = "{prompts}"', text)
    file.write_text(text)
    with pytest.raises(train_config.ConfigError, match="mse needs clips"):
        train_config.read_config(file)
    mse = text[text.index("[[stages.phases]]") : text.rindex("[[stages.phases]]")]
    file.write_text(text.replace(mse, ""))
    assert main(["train", str(file), "--device", "cpu"]) == 0
    out = tmp_path / "exported"
    assert main(["export", str(tmp_path / "out"), "--out", str(out), "--name", "matched"]) == 0
    card = (out / "README.md").read_text()
    assert "distribution matching" in card
    assert "cfg 1" in card


def test_every_epoch_of_a_prompt_pool_has_each_caption_once(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join("abcde"))
    pool = prompt_pool.PromptPool(file, (2, 4, 3, 3))
    drawn = [ref for number in range(5) for ref in pool.group(number, 2, (7,))]
    captions = [pool.read(ref).oriented(False)[1] for ref in drawn]
    assert sorted(captions[:5]) == sorted(captions[5:]) == list("abcde")
    assert captions[:5] != captions[5:]
    assert [ref for n in range(5) for ref in pool.group(n, 2, (7,))] == drawn
    latents, mirrored = prompt_pool.PromptClip("a fish swimming left", (2, 4, 3, 3)).oriented(True)
    assert latents.shape == (2, 4, 3, 3)
    assert mirrored == "a fish swimming right"


def test_the_plan_counts_the_fake(tmp_path, capsys):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", tmp_path)
    assert main(["plan", str(file)]) == 0
    assert "of the fake motion module" in capsys.readouterr().out
    assert main(["plan", "distribution", "--world-size", "8"]) == 0
    assert "distribution" in capsys.readouterr().out


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("fake_steps = 2", "discriminator_steps = 2"), "has no discriminator"),
        (("no_caption = 0.2", "renoise = [10]"), "sets renoise, which needs a discriminator"),
        (('loss = "mse"\n', 'loss = "mse"\nfake_steps = 3\n'), "has no fake motion module"),
        (("fake_head_start = 1", "fake_head_start = 3"), "so the student would learn nothing"),
    ],
)
def test_keys_of_another_loss_are_told(tmp_path, change, sentence):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", tmp_path)
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(train_config.ConfigError, match=sentence):
        train_config.read_config(file)


def test_the_noise_of_a_landing_is_that_of_the_forward_process():
    """alpha_bar_tau / alpha_bar_s is what is kept, so that a clean landing is noised as ever."""
    x0, noise = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x, tau = trajectory.renoise(x0, torch.tensor([schedule.CLEAN]), [400], noise)
    torch.testing.assert_close(x, prediction.forward(x0, noise, tau))
