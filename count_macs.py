"""Count a model's compute, parameters and cache: `python count_macs.py --model adm --n_repeat 5`.

With --eval_length_factor: at these capacities. The other flags are those of main.py.
"""

from config.parser import build_parser, validated
from errors import run_script, stdout_is_result
from models.config import ModelConfig
from models.macs import table


def main() -> None:
    stdout_is_result()
    args = validated(build_parser(__doc__).parse(None))
    print(table(ModelConfig.from_args(args), args.sequence_length, args.eval_length_factor, args.dtype))


if __name__ == "__main__":
    run_script(main)
