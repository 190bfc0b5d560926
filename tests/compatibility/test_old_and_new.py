"""A client or trainer of the old tree beside this tree's server, and the other way round."""

from __future__ import annotations

from tests.support.old_tree import NEW, Tree

WHERE = "import teacher_proto; print(teacher_proto.__file__)"


def test_each_tree_runs_on_its_own_source(old_tree: Tree) -> None:
    for tree in (old_tree, NEW):
        ended = tree.run("-c", WHERE)
        assert ended.stdout.startswith(f"{tree.path}/proto/"), ended.stderr
