"""Two processes at one preparation: what the second does when the first has finished."""

import logging
import threading

import pytest

from data.journal import Journal, JournalRemoved
from errors import Failure, UsageError


def second(folder, identity):
    """What becomes of a journal that is asked for while another one is held, and then removed."""
    first, waits, found = Journal(folder, {"source": "A"}), threading.Event(), []
    handler = logging.Handler()
    handler.emit = lambda record: waits.set()
    logger = logging.getLogger("data.journal")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)

    def wait():
        try:
            found.append(Journal(folder, identity))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(30)
    first.remove()
    thread.join(30)
    logger.removeHandler(handler)
    return found[0]


def test_the_result_of_the_same_preparation_is_taken(tmp_path):
    assert isinstance(second(tmp_path / "parts", {"source": "A"}), JournalRemoved)
    assert not (tmp_path / "parts").exists()


def test_the_result_of_another_one_is_refused(tmp_path):
    error = second(tmp_path / "parts", {"source": "B"})
    assert isinstance(error, UsageError) and "another source" in str(error)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="choose another --data_dir"):
        Journal(tmp_path / "file" / "parts", {})
