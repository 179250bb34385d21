#!/bin/sh
# While an image is built: llama.cpp as a wheel in /wheels. Its CPU kernels are for AVX2, and once
# more for AVX-512, in a folder where glibc's loader looks first on a CPU that has it.
# Usage: build-llama.sh PIN_FILE [CMAKE_OPTION...]
set -eu

pin=$1
shift
mkdir -p /wheels /glibc-hwcaps /tmp/llama
cd /tmp/llama
pip download --no-cache-dir --no-deps --no-binary llama-cpp-python --requirement "$pin"
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF $*" \
    pip wheel --no-cache-dir --no-deps --wheel-dir /wheels ./*.tar.gz
case "$(uname -m) $*" in
*GGML_NATIVE=ON*) exit 0 ;; # for this very CPU already
x86_64*) ;;
*) exit 0 ;;
esac

tar --extract --strip-components=1 --file ./*.tar.gz
cmake -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DGGML_NATIVE=OFF -DGGML_AVX512=ON
cmake --build build --target ggml-cpu
mkdir /glibc-hwcaps/x86-64-v4
cp build/bin/libggml-cpu.so.0 /glibc-hwcaps/x86-64-v4/
