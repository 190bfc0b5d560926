"""The file that hands weights over: whole, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from teacher_proto.errors import LsmError

from student_trainer.rollout.vllm.weights import FAILED, Manifest, read_weights, write_weights

TENSORS = {
    "model.embed.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "scale": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty((0, 4)),
    "ids": torch.tensor([1, 2, 3]),
    "flags": torch.tensor([True, False]),
}


def test_it_is_a_file_of_safetensors_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    view = torch.arange(20.0).reshape(4, 5).T
    manifest = write_weights(path, 7, {**TENSORS, "view": view})
    assert (manifest.version, manifest.tensors) == (7, 6)
    for found in (load_file(path), read_weights(path, 7)):
        assert found.keys() == {*TENSORS, "view"}
        for name, tensor in {**TENSORS, "view": view}.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def refused(path: Path, version: int = 7) -> str:
    with pytest.raises(LsmError) as error:
        read_weights(path, version)
    assert error.value.reason == FAILED
    return error.value.what


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    write_weights(path, 7, TENSORS)
    assert "version 7, not of 8" in refused(path, 8)
    assert "cannot be read" in refused(tmp_path / "nothing")


@given(data=st.data())
def test_a_file_that_was_cut_or_changed_anywhere_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "w"
    write_weights(path, 7, TENSORS)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        changed = bytearray(whole)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(changed))
    refused(path)


def test_a_writer_that_was_stopped_leaves_a_file_that_is_refused(tmp_path: Path) -> None:
    """Its last word is the manifest."""

    class Stops(dict[str, torch.Tensor]):
        def values(self):  # type: ignore[no-untyped-def]
            yield from [*super().values()][:1]
            raise KeyboardInterrupt

    path = tmp_path / "w"
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, 7, Stops(TENSORS))
    assert "not whole" in refused(path)


def test_the_manifest_has_one_length() -> None:
    lengths = {len(str(Manifest(n, n, n).to_metadata())) for n in (0, 7, 2**32 - 1)}
    assert len(lengths) == 1
    assert np.iinfo(np.uint32).max == 2**32 - 1, "a checksum fits"
