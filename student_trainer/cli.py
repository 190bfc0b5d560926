"""The program ``student-trainer``: its commands and their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from teacher_proto.program.entrypoint import add_shared_options, run_program

from student_trainer.commands.shared import quiet_libraries, resolve
from student_trainer.distributed.environment import spoken_rank


def build_parser() -> argparse.ArgumentParser:
    from student_trainer import recipes
    from student_trainer.commands import doctor, merge, prune, report
    from student_trainer.quickstart import command as quickstart
    from student_trainer.report import hub
    from student_trainer.study import command as study

    parser = argparse.ArgumentParser(
        prog="student-trainer",
        description="On-policy distillation by Local Support Matching against a teacher service.",
    )
    add_shared_options(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a student (resumes by itself)")
    train.add_argument(
        "configs", nargs="*", metavar="CONFIG.toml", help="read left to right; or recipe:NAME"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set one key, such as rollout.top_p=0.9; again for more",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print every setting and where it comes from, and stop",
    )
    train.set_defaults(run=run_train)
    for name, module, text in (
        ("doctor", doctor, "check what `train` with the same settings needs"),
        ("prune", prune, "make a depth-pruned student from a causal language model"),
        ("merge", merge, "fold LoRA adapters into their base model"),
        ("report", report, "make a run's report again, or put several runs on one page"),
        ("push", hub, "push a finished run's model and card to the hub"),
        ("recipes", recipes, "list the ready settings, or print one"),
        ("quickstart", quickstart, "a teacher, a student and a training run, from nothing"),
        ("study", study, "make laboratory models, or repeat a study of the method"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def run_train(arguments: argparse.Namespace) -> int:
    from teacher_proto.program.settings_show import describe
    from teacher_proto.tracing import export_traces

    resolved = resolve(arguments)
    quiet_libraries()
    if arguments.dry_run:
        from student_trainer.commands.dry_run import compare_tokenizers, look

        sys.stdout.write(describe(resolved).rstrip("\n") + "\n")
        for name, finding in look(resolved.settings):
            sys.stdout.write(f"# {name}: {finding}\n")
        sys.stdout.write(f"# tokenizers: {compare_tokenizers(resolved.settings)}\n")
        return 0
    from student_trainer.report.table import print_closing
    from student_trainer.train import Trainer

    flush_traces = export_traces("student-trainer")
    try:
        result = Trainer(resolved.settings).train()
    finally:
        flush_traces()
    if not spoken_rank():
        print_closing(result.path)
    return 0


def run(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_program(run, argv, extra="trainer", speaker=spoken_rank())
