"""Photographs read ahead by threads: the same pixels, the same errors, and nothing left running."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.reading import Reader


def pixels_of(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def photographs(folder: Path, count: int) -> list[Photograph]:
    result = []
    for n in range(count):
        path = folder / f"{n}.png"
        Image.new("RGB", (4, 3), (n, 2 * n, 3)).save(path)
        result.append(Photograph(str(n), "a plain", (), "made", path))
    return result


def test_what_is_read_ahead_is_what_is_read(tmp_path: Path) -> None:
    some = photographs(tmp_path, 9)
    with Reader(pixels_of, threads=3) as reader:
        reader.ahead(some[:6])
        for one in some:  # the last three were not announced
            assert torch.equal(reader.read(one), pixels_of(one.open()))


def test_the_next_block_is_read_while_this_one_is_measured(tmp_path: Path) -> None:
    some, read = photographs(tmp_path, 2), threading.Event()

    def pixels(picture: Image.Image) -> Tensor:
        read.set()
        return pixels_of(picture)

    with Reader(pixels, threads=1) as reader:
        reader.ahead(some)
        assert read.wait(60)  # nobody has asked for it yet


def test_a_file_that_cannot_be_read_is_an_error_when_it_is_asked_for(tmp_path: Path) -> None:
    good, damaged = photographs(tmp_path, 2)
    damaged.path.write_bytes(b"no image")
    with Reader(pixels_of) as reader:
        reader.ahead([damaged, good])
        assert torch.equal(reader.read(good), pixels_of(good.open()))
        with pytest.raises(OSError, match="not an image that can be read"):
            reader.read(damaged)


def test_beside_a_cpu_pictures_are_read_by_the_caller(tmp_path: Path) -> None:
    (photograph,), readers = photographs(tmp_path, 1), []

    def pixels(picture: Image.Image) -> Tensor:
        readers.append(threading.current_thread())
        return pixels_of(picture)

    with Reader.beside("cpu", pixels) as reader:
        reader.ahead([photograph])
        assert readers == []
        assert torch.equal(reader.read(photograph), pixels_of(photograph.open()))
    assert readers == [threading.current_thread()]


def test_no_thread_outlives_the_run(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    names: list[str] = []

    def pixels(picture: Image.Image) -> Tensor:
        names.append(threading.current_thread().name)
        begun.set()
        go_on.wait(60)
        return pixels_of(picture)

    with pytest.raises(KeyboardInterrupt), Reader(pixels, threads=1) as reader:
        reader.ahead(photographs(tmp_path, 5))
        assert begun.wait(60)
        go_on.set()
        raise KeyboardInterrupt
    assert not {thread.name for thread in threading.enumerate()} & set(names)
