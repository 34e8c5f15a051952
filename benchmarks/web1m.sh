#!/bin/sh
# Web text in a million bytes, from text to the table: `pgolf run web1m`, then PPMd, xz and bzip2 beside it,
# each after as much of the training text as it packs into a million bytes itself.
#
#     benchmarks/web1m.sh TRAINING.jsonl.zst VALIDATION.jsonl.zst TOKENIZER.model OUT
set -eu
pgolf run web1m --text "$1" --val-text "$2" --tokenizer "$3" --out "$4/run"
pgolf bench yardstick "$4/run" --cap 1000000 --out "$4/yardstick.json"
