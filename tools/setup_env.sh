#!/usr/bin/env bash
# Creates one of the two virtual environments of this repository, or completes it.
#
#   tools/setup_env.sh onedl      .venv             # the maintained fork of the OpenMMLab stack
#   tools/setup_env.sh openmmlab  .venv-openmmlab   # the official stack of most existing projects
#
# Every step first looks whether it is done, so a set-up that was interrupted goes on where it stopped and a finished
# one ends within seconds. The versions come from constraints/<lane>.txt. Settings, all optional:
#
#   PYTHON=python3.11    interpreter to start from
#   MAX_JOBS=4           parallel compilers for mmcv's ops (each takes up to 2 GB of memory)
#   FORCE_CUDA=1         build mmcv's CUDA ops although this machine shows no GPU
#   PIP_...              pip's own variables, e.g. an extra index with CPU wheels of torch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lane=${1:-onedl}
case $lane in
    onedl)
        venv=${2:-.venv} newest=13
        mm=(onedl-mmengine onedl-mmcv onedl-mmdetection imaug pycocotools) ;;
    openmmlab)
        venv=${2:-.venv-openmmlab} newest=11
        mm=(mmengine mmcv mmdet) ;;
    *)
        echo "tools/setup_env.sh: unknown lane '$lane'; choose onedl or openmmlab." >&2
        exit 2 ;;
esac
constraints=constraints/$lane.txt
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
py=$venv/bin/python
log=$venv/setup.log
stamp=$venv/.ready
base=(torch torchvision numpy setuptools wheel ninja)
extras=(pytest pytest-xdist pytest-timeout ruff mypy scikit-learn matplotlib rich tensorboard)
# What mmkd_plugin can work with but does not need; the tests that use one skip where it is missing.
optional=()
if [ "$lane" = onedl ]; then optional=(timm onedl-mmpretrain onedl-mmsegmentation pytorch-optimizer); fi

say() { printf '[set-up] %s\n' "$*"; }
die() { printf '\n[set-up] %s\n' "$@" >&2; exit 1; }
pip() { "$py" -m pip --disable-pip-version-check "$@"; }

# Prints the first interpreter that this lane's versions exist for.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.11 python3.10 python3.12 python3.13 python; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# have NAME...: are these distributions installed, in the versions that the constraints name?
have() {
    "$py" - "$constraints" "$@" <<'PYTHON'
import importlib.metadata as metadata
import re
import sys

def norm(name):
    return re.sub(r"[-_.]+", "-", name).lower()

pins = {}
for line in open(sys.argv[1]):
    found = re.match(r"([\w.-]+)==([^\s;]+)", line)
    if found:
        pins[norm(found[1])] = found[2]
for name in sys.argv[2:]:
    try:
        version = metadata.version(name).split("+")[0]  # 2.11.0+cpu is 2.11.0
    except metadata.PackageNotFoundError:
        sys.exit(1)
    if pins.get(norm(name), version) != version:
        sys.exit(1)
PYTHON
}

# Runs one op where training will run it: mmcv may be there without ops, for another torch, or for the CPU alone.
ops_work() {
    "$py" -c "
import torch
from mmcv.ops import nms
device = 'cuda' if torch.cuda.is_available() else 'cpu'
nms(torch.tensor([[0., 0., 1., 1.]], device=device), torch.ones(1, device=device), 0.5)" "$@"
}

# CUDA ops need a GPU and an nvcc of torch's CUDA version. With a GPU alone the ops are compiled for the CPU, and
# $venv/runtime.env, which the Makefile reads, keeps the runs off the GPU: boxes on it would find no op.
choose_device() {
    local cuda nvcc release=
    cuda=$("$py" -c "import torch; print(torch.version.cuda.split('.')[0] if torch.cuda.is_available() else '')")
    if [ -z "$cuda" ] || [ "${FORCE_CUDA:-0}" = 1 ]; then return; fi
    nvcc=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")}/bin/nvcc
    [ ! -x "$nvcc" ] || release=$("$nvcc" --version | grep -oE 'release [0-9]+' | grep -oE '[0-9]+')
    if [ "$release" = "$cuda" ]; then
        say "  a GPU and $nvcc are here: mmcv's CUDA ops are compiled too, which takes longer"
        return
    fi
    say "  a GPU is here but no nvcc of CUDA $cuda (found: ${release:-none}): mmcv's ops are compiled for the CPU and 'make' runs there."
    say "  To use the GPU: install the CUDA $cuda toolkit, then 'make distclean' and this command again."
    echo CUDA_VISIBLE_DEVICES= >"$venv/runtime.env"
    export CUDA_VISIBLE_DEVICES=
}

# quietly TITLE COMMAND...: runs a long command into the log and says once a minute how far it is.
quietly() {
    local title=$1 start=$SECONDS pid done_ next=60 from
    shift
    printf '\n### %s: %s\n' "$(date '+%F %T')" "$*" >>"$log"
    from=$(wc -l <"$log")
    "$@" >>"$log" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null' EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ $((SECONDS - start)) -ge "$next" ]; then
            # ninja numbers what it compiles: [17/140]
            done_=$(tail -n "+$from" "$log" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 | tr -d ' []' || true)
            say "  $title: $((next / 60)) min${done_:+, $done_ files compiled}"
            next=$((next + 60))
        fi
    done
    trap - EXIT
    if ! wait "$pid"; then
        tail -n 40 "$log" >&2
        die "$title failed; the end of $log is above. Run the same make command again to go on from here."
    fi
}

install_mm() {
    quietly "mmcv" env MMCV_WITH_OPS=1 MAX_JOBS="$jobs" "$py" -m pip --disable-pip-version-check install -v \
        --no-build-isolation -c "$constraints" "$@"
}

# ---------------------------------------------------------------------------------------------------------------------
if [ ! -x "$py" ] || ! "$py" -c "import pip" 2>/dev/null; then
    python=$(find_python) || die \
        "This set-up needs Python 3.10 to 3.$newest (its packages have no builds for other versions); none was found." \
        "Install one, e.g. 'apt install python3.11 python3.11-venv python3.11-dev', or name it: make PYTHON=/path/to/python3.11 ..."
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || die \
        "'$python -m venv' failed: on Debian and Ubuntu install python3-venv ('apt install python3-venv') and run the command again."
fi
touch "$log"
if [ -e "$venv/runtime.env" ]; then export CUDA_VISIBLE_DEVICES=; fi

if ! have "${base[@]}"; then
    say "step 1 of 3: torch and torchvision (a download of up to 3 GB where the CUDA wheels are taken: 1-10 minutes)"
    pip install -c "$constraints" "${base[@]}" || die "Installing torch failed; see above, and run the same make command again."
fi

if ! have "${mm[@]}" || ! ops_work >/dev/null 2>&1; then
    command -v g++ >/dev/null || command -v c++ >/dev/null || die \
        "mmcv's ops are compiled here and that needs a C++ compiler: 'apt install gcc g++', then run the same make command again."
    header=$("$py" -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h
    [ -e "$header" ] || die \
        "mmcv's ops are compiled here and that needs Python's headers ($header): 'apt install python3-dev', then run the same make command again."
    # One compiler per core, and no more than the memory holds.
    jobs=${MAX_JOBS:-$("$py" -c "import os; print(max(1, min(os.cpu_count() or 1, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 31)))")}
    say "step 2 of 3: ${mm[*]}"
    say "  mmcv's ops are compiled once, with $jobs jobs: 10-30 minutes (a few seconds if pip still has them from another clone)"
    choose_device
    have "${mm[@]}" || install_mm "${mm[@]}"
    # imaug asks for opencv-python, which needs a display's libraries; the headless files serve as well.
    "$py" -c "import cv2" 2>/dev/null || pip install -q --force-reinstall --no-deps -c "$constraints" opencv-python-headless
    if ! ops_work >/dev/null 2>&1; then
        say "  the mmcv that pip had at hand was built without ops or for another torch: compiling it anew"
        name=$(printf '%s\n' "${mm[@]}" | grep 'mmcv$')
        install_mm --force-reinstall --no-deps --no-cache-dir --no-binary "$name" "$name"
    fi
    ops_work || die \
        "mmcv is installed but its compiled ops do not work (error above)." \
        "See $log for the compiler's messages; to start over: rm -rf $venv, then run the same make command again."
fi

say "step 3 of 3: tools for tests and demo, and this repository itself (editable)"
have "${extras[@]}" || pip install -q -c "$constraints" "${extras[@]}"
if [ ${#optional[@]} -gt 0 ] && ! have "${optional[@]}"; then
    pip install -q --no-build-isolation -c "$constraints" "${optional[@]}" ||
        say "  ${optional[*]} could not be installed (error above): going on without, the tests that use them will skip"
fi
pip install -q --no-build-isolation --no-deps -e .

(cd / && "$py" -c "
import importlib.util
import mmdet, mmengine, torch, torchvision
from mmcv.ops import nms
assert importlib.util.find_spec('mmkd_plugin'), 'mmkd_plugin is not importable'
") || die "The environment is incomplete (error above). To start over: rm -rf $venv, then run the same make command again."
touch "$stamp"
say "$venv is ready: $("$py" -c "
import mmcv, mmdet, mmengine, sys, torch
print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, mmengine {mmengine.__version__},',
      f'mmcv {mmcv.__version__} with ops, mmdet {mmdet.__version__}')" 2>/dev/null)"
