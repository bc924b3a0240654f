"""The process in which CUDA is imitated: calls functions of checks.py and counts.py and answers in JSON.

Each line of stdin is a call, {"check": name, "arguments": {...}}; each line of stdout its answer, {"result":
...} or {"error": traceback}. The first line says whether CUDA can be imitated here: {"result": null} or
{"unavailable": reason}.
"""

import json
import os
import sys
import traceback
from typing import Any

from tests.cuda import hooks


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")

    try:
        hooks.load()
    except hooks.Unavailable as reason:
        answer(unavailable=str(reason))
        return
    from tests.cuda import checks, counts

    functions = {**vars(checks), **vars(counts)}
    answer(result=None)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer(result=functions[call["check"]](**call["arguments"]))
        except Exception:
            answer(error=traceback.format_exc())


if __name__ == "__main__":
    main()
