"""The proofs in full length (`make proofs`); each writes its own JSON file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from teacher_proto.program.settings_show import to_toml

from benchmarks.harness import write_result
from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from tests.proofs.kills import SAVES, STEPS
from tests.proofs.runs import Room, assert_equal, errors, forget, metrics, newest, shown, tensors
from tests.proofs.test_checkpoint_damaged import falls_back, interrupted
from tests.proofs.test_teacher_killed import killed_teachers, stopped_by_another
from tests.proofs.test_trainer_killed import EVERY_SECOND, STOPS, killed_all_along
from tests.support.faults import POISONS, killed
from tests.support.programs import TRAINER, Teacher, Zygote

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
SAVE = "student_trainer.loop:TrainingLoop.save"
KILLS = [fault for pair in zip(SAVES, STEPS, strict=True) for fault in pair]


def test_1_teacher_killed_20_times_in_200_steps(room: Room, tiny_model_dir: Path) -> None:
    steps = 200
    calls = [20 + 7 * (index % 5) for index in range(20)]
    kills = killed_teachers(room, tiny_model_dir, calls, steps)
    room.teacher.start(tiny_model_dir)
    straight = room.finish(room.config("straight", steps))
    assert_equal(room.folder / "disturbed" / "run", straight, steps)
    seen = shown(room.folder / "disturbed")
    write_result(
        "proof_teacher_killed",
        {"kills": kills, "steps": steps, "steps_lost": steps - len(set(seen)),
         "steps_repeated": len(seen) - len(set(seen))},
        {"staleness": 1},
    )  # fmt: skip
    assert kills == 20
    assert seen == list(range(1, steps + 1))


@pytest.mark.parametrize("staleness", [0, 1])
def test_2_trainer_killed_20_times(served: Room, staleness: int) -> None:
    steps, pipeline = 60, {"staleness": staleness}
    faults = KILLS
    if not staleness:  # without waiting batches a save has two files of tensors, not three
        faults = [[{**f[0], "call": {5: 4, 3: 2}.get(f[0]["call"], f[0]["call"])}]
                  if f[0]["target"].endswith(":save_file") else f for f in KILLS]  # fmt: skip
    straight = served.finish(served.config("straight", steps, pipeline=pipeline, **EVERY_SECOND))
    kills, damaged = killed_all_along(served, faults, steps, pipeline=pipeline)
    assert_equal(served.folder / "killed" / "run", straight, steps)
    write_result(
        f"proof_trainer_killed_staleness_{staleness}",
        {"kills": kills, "during_a_save": len(SAVES), "unreadable_checkpoints": damaged},
        {"steps": steps, "places": [fault[0]["target"] for fault in faults]},
    )  # fmt: skip
    assert (kills, damaged) == (20, 0)


def test_3_what_is_left_out_is_noticed(served: Room) -> None:
    straight = served.finish(served.config("straight", 8, **EVERY_SECOND))
    noticed = {}
    for what in ("rng", "moments", "position"):
        config = served.config(what, 8, **EVERY_SECOND)
        for _ in range(3):
            assert served.run(config, killed("student_trainer.pipeline:Pipeline.drop", 3)) < 0
            forget(newest(config), what)
        noticed[what] = tensors(served.finish(config), 8) != tensors(straight, 8)
    write_result("proof_negative_controls", {"failed_as_they_must": sum(noticed.values())}, noticed)
    assert all(noticed.values())


def test_4_ten_cuts_and_a_full_disk(served: Room, student_model_dir: Path, tmp_path: Path) -> None:
    damaged = interrupted(served)
    straight = served.finish(served.config("straight", 5, checkpoint={"every": 1}))
    cuts = []
    for index in range(10):
        run, cut = falls_back(served, damaged, (index + 0.5) / 10, f"cut-{index}")
        assert_equal(run, straight, 5)
        cuts.append(cut)
    full = full_disk(served, student_model_dir, tmp_path)
    write_result(
        "proof_damaged_checkpoints",
        {"fell_back": len(cuts) + full, "cuts": len(cuts), "full_disks": full},
        {"cut_files": cuts},
    )
    assert full == 1


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


def test_5_sigterm(served: Room) -> None:
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
    write_result(
        "proof_sigterm",
        {"slowest_exit_seconds": max(seconds.values()), "steps_redone": redone},
        {"seconds": seconds},
    )
    assert redone == 0
    assert max(seconds.values()) <= 5


def test_19_poisoned_replies(served: Room) -> None:
    refused = {}
    sections = {"pipeline": {"staleness": 0, "send": "group"}}
    healthy = tensors(served.finish(served.config("healthy", 2, **sections)), 2)
    for kind in POISONS:
        name = kind.replace(" ", "-")
        config = served.config(name, 5, run={"name": f"poison {kind}"}, **sections)
        code = served.run(config)
        same = tensors(config.run.output_dir, 2) == healthy
        refused[kind] = {
            "code": code, "updates_after": len(metrics(config.run.output_dir)) - 2, "equal": same,
            "said": errors(config).splitlines()[-1].replace(str(served.folder), ""),
        }  # fmt: skip
    good = sum(r["code"] == 3 and r["equal"] for r in refused.values())
    updates = sum(int(r["updates_after"]) for r in refused.values())
    write_result("proof_poisoned", {"refused": good, "updates": updates}, refused)
    assert (good, updates) == (8, 0)


def test_22_another_teacher(
    room: Room, tiny_model_dir: Path, student_model_dir: Path, other_tokenizer_model_dir: Path
) -> None:
    stopped = 0
    for foreign in (student_model_dir, other_tokenizer_model_dir):
        folder = room.folder / foreign.name
        teacher = Teacher(room.teacher.zygote, folder / "teacher")
        stopped_by_another(
            Room(folder, room.student, room.trainers, teacher), tiny_model_dir, foreign
        )
        teacher.stop()
        stopped += 1
    write_result("proof_other_teacher", {"stopped_before_the_next_update": stopped}, {})
