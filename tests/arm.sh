#!/bin/sh
# Builds the library for 64-bit ARM and runs the given tests under emulation: as a Cortex-A72 (Raspberry Pi 4: NEON),
# as a Cortex-A76 (Raspberry Pi 5: NEON and dot products), and with 8-bit matrix products. `make arm` calls it from the
# top folder.
#
# The aarch64 Python is unpacked from Debian packages and never installed; nothing but the tests is emulated.
# mmdebstrap needs root, or user namespaces. MIRROR and RELEASE choose the Debian archive. All kernels whole take hours:
# ARM_PYTEST=--quick takes a quarter of the cases, ARM_PYTEST='-k i8mm' one level's, 7 minutes.
set -eu

python=${PYTHON:-python3}
root=$PWD/build/arm-root
library=$PWD/build/arm/liblutra.so

cmake -S native -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DPython3_EXECUTABLE="$(command -v "$python")"
cmake --build build/arm --parallel "$(getconf _NPROCESSORS_ONLN)"
install -m 644 build/arm/_api.py native/

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    mmdebstrap --quiet --arch=arm64 --variant=extract --skip=check/qemu \
        --include=base-files,python3-minimal,libpython3-stdlib,libstdc++6 "${RELEASE:-bookworm}" "$root" ${MIRROR:-}
    version=$(basename "$(find "$root/usr/lib" -maxdepth 1 -name 'python3.*')")
    "$python" -m pip install --quiet --target "$root/opt/site" --implementation cp \
        --python-version "${version#python}" --only-binary=:all: \
        --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 numpy cffi pytest
    touch "$root/complete"
fi

emulated() { # emulated <cpu> <arguments of python>
    cpu=$1
    shift
    QEMU_LD_PREFIX=$root LUTRA_LIBRARY=$library PYTHONPATH=build/pkg:$root/opt/site PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -cpu "$cpu" "$root/usr/bin/python3" "$@"
}

for cpu in cortex-a72:neon cortex-a76:neon,dotprod max,sve=off:neon,dotprod,i8mm; do
    emulated "${cpu%:*}" -c "
from lutra import native
found = ','.join(native.cpu_features())
assert found == '${cpu#*:}', f'a ${cpu%:*} has {found}'
best = native.Plan(native.Engine(1), [native.Op('linear_t5', [], [], [], False, False)], []).kernels[0]
print('${cpu%:*}:', found, '->', best)
assert best == 'linear_t5_' + found.split(',')[-1]"
    emulated "${cpu%:*}" -m pytest -p no:cacheprovider ${ARM_PYTEST:-} "$@"
done
