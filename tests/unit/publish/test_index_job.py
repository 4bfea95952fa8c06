"""What is written is read again: a zTOC that says anything but the tar is not given out."""

import gzip
import io
from dataclasses import replace

import pytest

from imgvol.publish import index_job
from support import tars
from support.soci import sha256

TAR = tars.member(b"one", b"1") + tars.member(b"two", b"22") + tars.END


def run_with(change, monkeypatch, directory):
    """The answer of the job whose writer changes each member."""

    def write(parts):
        return honest(replace(parts, members=[change(member) for member in parts.members]))

    honest = index_job.write_ztoc
    monkeypatch.setattr(index_job, "write_ztoc", write)
    blob = gzip.compress(TAR)
    request = {"digest": sha256(blob), "size": len(blob), "diff_id": sha256(TAR), "span_size": 4096}
    return index_job.run(request, io.BytesIO(blob), directory, lambda _done: None)


@pytest.mark.parametrize(
    "change",
    [
        lambda member: member._replace(mode=member.mode ^ 0o100),
        lambda member: member._replace(name=member.name + b"s"),
        lambda member: member._replace(uid=member.uid + 1),
    ],
    ids=["mode", "name", "owner"],
)
def test_a_ztoc_of_other_files_is_not_given_out(change, monkeypatch, tmp_path):
    answer = run_with(change, monkeypatch, tmp_path)
    assert answer == {"unfit": "a zTOC cannot say all that the layer's tar does"}
    assert not list(tmp_path.iterdir())


def test_a_ztoc_with_other_words_for_the_same_files_is(monkeypatch, tmp_path):
    answer = run_with(
        lambda member: member._replace(name=b"./" + member.name), monkeypatch, tmp_path
    )
    assert answer["members"] == 2
    assert (tmp_path / "ztoc").exists()
