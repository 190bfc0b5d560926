"""The proofs of runs in full length (`make soak`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.program.settings_show import to_toml

from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from student_trainer.settings.train import TrainConfig
from tests.proofs.kills import SAVES, STEPS
from tests.proofs.ledger import Proof, count
from tests.proofs.runs import Room, assert_equal, errors, forget, metrics, newest, shown, tensors
from tests.proofs.test_checkpoint_damaged import falls_back, interrupted
from tests.proofs.test_teacher_killed import killed_teachers, stopped_by_another
from tests.proofs.test_trainer_killed import EVERY_SECOND, STOPS, killed_all_along
from tests.support.faults import POISONS, Fault, disabled, killed
from tests.support.programs import TRAINER, Teacher, Zygote

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SAVE = "student_trainer.loop:TrainingLoop.save"
KILLS = [fault for pair in zip(SAVES, STEPS, strict=True) for fault in pair]


def test_proof_01_the_teacher_killed_20_times_in_200_steps(
    room: Room, tiny_model_dir: Path, proof: Proof
) -> None:
    kills, steps = count(20), count(200)
    calls = [20 + 7 * (index % 5) for index in range(kills)]
    proof.figure("kills", killed_teachers(room, tiny_model_dir, calls, steps), exactly=kills)
    room.teacher.start(tiny_model_dir)
    straight = room.finish(room.config("straight", steps))
    disturbed = room.folder / "disturbed" / "run"
    seen = shown(room.folder / "disturbed")
    proof.figure("steps", steps)
    proof.figure("steps_lost", len(set(range(1, steps + 1)) - set(seen)), exactly=0)
    proof.figure("steps_repeated", len(seen) - len(set(seen)), exactly=0)
    proof.figure("weights_equal", equal(disturbed, straight, steps), exactly=1)
    other = room.finish(room.config("other", steps, run={"seed": 7}))
    proof.control("another seed is seen in the weights", failed=not equal(other, straight, steps))
    proof.settle()


def equal(run: Path, straight: Path, steps: int) -> bool:
    return metrics(run) == metrics(straight) and tensors(run, steps) == tensors(straight, steps)


def test_proof_02_the_trainer_killed_20_times(served: Room, proof: Proof) -> None:
    steps = 60
    for staleness in (0, 1):
        pipeline = {"staleness": staleness}
        faults = KILLS
        if not staleness:  # without waiting batches a save has two files of tensors, not three
            faults = [[{**f[0], "call": {5: 4, 3: 2}.get(f[0]["call"], f[0]["call"])}]
                      if f[0]["target"].endswith(":save_file") else f for f in KILLS]  # fmt: skip
        faults = faults[: count(20)]
        here = replace(served, folder=served.folder / str(staleness))
        straight = here.finish(here.config("straight", steps, pipeline=pipeline, **EVERY_SECOND))
        kills, damaged = killed_all_along(here, faults, steps, pipeline=pipeline)
        name = f"staleness_{staleness}"
        proof.figure(f"kills_{name}", kills, exactly=count(20))
        proof.figure(f"unreadable_checkpoints_{name}", damaged, exactly=0)
        same = equal(here.folder / "killed" / "run", straight, steps)
        proof.figure(f"weights_equal_{name}", same, exactly=1)
        proof.details[name] = [fault[0]["target"] for fault in faults]
    proof.figure("during_a_save", len(SAVES))
    left_out = what_is_left_out(served)
    proof.control("the optimiser's state left out", failed=left_out["moments"])
    proof.settle()


def what_is_left_out(served: Room) -> dict[str, bool]:
    """Part of a checkpoint -> whether its loss is seen in the weights at the end."""
    straight = served.finish(served.config("straight", 8, **EVERY_SECOND))
    noticed = {}
    for what in ("nothing", "rng", "moments", "position"):
        config = served.config(what, 8, **EVERY_SECOND)
        for _ in range(3):
            assert served.run(config, killed("student_trainer.pipeline:Pipeline.drop", 3)) < 0
            if what != "nothing":
                forget(newest(config), what)
        noticed[what] = tensors(served.finish(config), 8) != tensors(straight, 8)
    return noticed


def test_proof_03_what_is_left_out_is_noticed(served: Room, proof: Proof) -> None:
    noticed = what_is_left_out(served)
    control = noticed.pop("nothing")
    proof.figure("failed_as_they_must", sum(noticed.values()), exactly=3)
    proof.details["noticed"] = noticed
    proof.control("nothing left out, so that nothing is noticed", failed=not control)
    proof.settle()


def test_proof_04_ten_cuts_and_a_full_disk(
    served: Room, student_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    damaged = interrupted(served)
    straight = served.finish(served.config("straight", 5, checkpoint={"every": 1}))
    cuts = []
    for index in range(count(10)):
        run, cut = falls_back(served, damaged, (index + 0.5) / 10, f"cut-{index}")
        assert_equal(run, straight, 5)
        cuts.append(cut)
    proof.details["cut_files"] = cuts
    with unchecked(), pytest.raises(AssertionError):
        falls_back(served, damaged, 0.5, "unchecked")
    proof.control("checkpoints that are not checked", failed=True)
    full = full_disk(served, student_model_dir, tmp_path)
    proof.figure("fell_back", len(cuts) + full, exactly=count(10) + 1)
    proof.settle()


@contextmanager
def unchecked() -> Iterator[None]:
    """Trainers in this context hold every checkpoint for good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Room, "run", lambda room, config, faults=(): run_unchecked(room, config))
        yield


def run_unchecked(room: Room, config: TrainConfig) -> int:
    return room.start(config, disabled("student_trainer.run.checkpoint:damage")).wait()


def full_disk(served: Room, student: Path, tmp_path: Path) -> int:
    """A run on a file system of its own that is full at its second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=16m tmpfs {disk} && exec "$@"'
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", "true"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    with Zygote(TRAINER, before=("unshare", "-rm", "sh", "-c", mount, "sh")) as trainers:
        inside = Path(f"/proc/{trainers.process.pid}/root{disk}")
        here = Room(tmp_path / "full", student, trainers, served.teacher)
        sections = {"student": {"lora": None}, "checkpoint": {"every": 1}}
        config = here.config("run", 4, **sections)
        config = config.model_copy(
            update={"run": config.run.model_copy(update={"output_dir": disk / "run"})}
        )
        folder = tmp_path / "full" / "run"
        (folder / "config.toml").write_text(to_toml(config))
        argv = ["train", str(folder / "config.toml")]
        # Room for one checkpoint, and for half of the second.
        assert trainers.start(argv, folder, killed(SAVE, 2)).wait() == -signal.SIGKILL
        size = sum(p.stat().st_size for p in (inside / "run").rglob("*") if p.is_file())
        left = os.statvfs(inside)
        filler = inside / "filler"
        filler.write_bytes(bytes(left.f_bavail * left.f_frsize - size // 2))
        assert trainers.start(argv, folder).wait() == 1
        log = (folder / "errors").read_text()
        assert "No space left" in log
        assert "cannot write the checkpoint of step 2" in log
        found = listing(inside / "run" / "checkpoints")
        assert [p.name for p in found] == ["step-000001"]
        assert checkpoint.damage(found[0]) is None
        filler.unlink()
        assert trainers.start(argv, folder).wait() == 0
        assert "resuming after step 1" in (folder / "errors").read_text()
        shutil.copytree(inside / "run", tmp_path / "copied")
    straight = served.finish(served.config("straight-full", 4, **sections))
    assert_equal(tmp_path / "copied", straight, 4)
    return 1


def test_proof_05_sigterm(served: Room, proof: Proof) -> None:
    straight = served.finish(served.config("straight", 6))
    seconds, redone = {}, 0
    for place, (target, call, _) in STOPS.items():
        config = served.config(place, 6, checkpoint={"every": 50 if place != "saving" else 2})
        child = served.start(config, killed(target, call, number=signal.SIGSTOP))
        status = Path(f"/proc/{child.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)  # until it is where the signal shall find it
        began = time.perf_counter()
        child.send(signal.SIGTERM)
        child.send(signal.SIGCONT)
        assert child.wait() == 143
        seconds[place] = time.perf_counter() - began
        assert checkpoint.load_state(newest(config)).step == len(metrics(config.run.output_dir))
        assert_equal(served.finish(config), straight, 6)
        seen = shown(served.folder / place)
        redone += len(seen) - len(set(seen))
    proof.figure("slowest_exit_seconds", max(seconds.values()), at_most=5)
    proof.figure("steps_redone", redone, exactly=0)
    proof.details["seconds"] = seconds
    config = served.config("killed", 6, checkpoint={"every": 50})
    child = served.start(config, killed(STOPS["waiting"][0], 8, number=signal.SIGKILL))
    assert child.wait() == -signal.SIGKILL
    served.finish(config)
    seen = shown(served.folder / "killed")
    again = len(seen) - len(set(seen))
    proof.control("SIGKILL in its place: steps are done again", failed=again > 0)
    proof.settle()


def test_proof_19_poisoned_replies(served: Room, proof: Proof) -> None:
    sections = {"pipeline": {"staleness": 0, "send": "group"}}
    healthy = tensors(served.finish(served.config("healthy", 2, **sections)), 2)
    refused = {kind: poisoned_run(served, kind, healthy, sections) for kind in POISONS}
    good = sum(r["code"] == 3 and r["equal"] for r in refused.values())
    proof.figure("refused", good, exactly=8)
    proof.figure("updates", sum(int(r["updates_after"]) for r in refused.values()), exactly=0)
    proof.details["refused"] = refused
    # A client that checks nothing: the poison reaches the trainer.
    unchecked = disabled("teacher_proto.client.async_client:check_reply")
    let_in = poisoned_run(served, "duplicate id", healthy, sections, unchecked)
    proof.control("a client that does not check replies", failed=let_in["code"] != 3)
    proof.settle()


def poisoned_run(
    served: Room,
    kind: str,
    healthy: dict[str, bytes],
    sections: dict[str, Any],
    faults: Sequence[Fault] = (),
) -> dict[str, Any]:
    name = f"{kind} {len(faults)}".replace(" ", "-")
    config = served.config(name, 5, run={"name": f"poison {kind}"}, **sections)
    code = served.run(config, faults)
    return {
        "code": code,
        "updates_after": len(metrics(config.run.output_dir)) - 2,
        "equal": code == 3 and tensors(config.run.output_dir, 2) == healthy,
        "said": [*errors(config).splitlines(), ""][-1].replace(str(served.folder), ""),
    }


def test_proof_22_another_teacher(
    room: Room,
    tiny_model_dir: Path,
    student_model_dir: Path,
    other_tokenizer_model_dir: Path,
    proof: Proof,
) -> None:
    def stopped(own: Path, foreign: Path) -> bool:
        folder = room.folder / f"{own.name}-{foreign.name}"
        teacher = Teacher(room.teacher.zygote, folder / "teacher")
        try:
            stopped_by_another(
                Room(folder, room.student, room.trainers, teacher), tiny_model_dir, foreign
            )
        except AssertionError:
            return False
        finally:
            teacher.stop()
        return True

    found = [
        stopped(tiny_model_dir, foreign)
        for foreign in (student_model_dir, other_tokenizer_model_dir)
    ]
    proof.figure("stopped_before_the_next_update", sum(found), exactly=2)
    same = stopped(tiny_model_dir, tiny_model_dir)
    proof.control("the same teacher again, by which nobody is stopped", failed=not same)
    proof.settle()
