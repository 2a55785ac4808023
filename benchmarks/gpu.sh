#!/usr/bin/env bash
# All that needs a CUDA device, once: tests, prices, tables. Results go to a folder.
# usage: benchmarks/gpu.sh [FOLDER] [what `python -m benchmarks kernels` takes: --quick, --only ..]
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${1:-benchmarks/results}"
more=("${@:2}")
python="${PYTHON:-python}"
mkdir -p "$folder"
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())' || exit 1
failed=0
"$python" -m pytest -q -m gpu -p no:cacheprovider tests || failed=1
for rounding in ieee tf32; do
    "$python" -c "import torch; torch.backends.cuda.matmul.allow_tf32 = '$rounding' == 'tf32'
from tnc.cli import main; main()" doctor --calibrate --device cuda || failed=1
done
"$python" -c "from tnc.cli import main; main()" doctor --calibrate --device cuda --dtype bfloat16 \
    || failed=1
# tables hold to goals too: a goal that is missed is no fault of the run
for name in kernels kernels-train; do
    "$python" -m benchmarks "$name" --device cuda --tune measure "${more[@]}" \
        --json "$folder/$name-cuda.json" | tee "$folder/$name-cuda.txt"
    [ -s "$folder/$name-cuda.json" ] || failed=1
done
exit "$failed"
