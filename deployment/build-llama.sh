#!/bin/sh
# While an image is built: llama.cpp's libraries into /llama, and the Python package without them as a
# wheel into /wheels. The CPU's kernels are for AVX2, and on x86-64 once more for AVX-512, in a folder
# where glibc's loader looks first on a CPU that has it.
# Usage: build-llama.sh PIN_FILE [CMAKE_OPTION...]
set -eu

pin=$1
shift
mkdir -p /llama /wheels /tmp/llama.cpp
cd /tmp/llama.cpp
pip download --no-cache-dir --no-deps --no-binary llama-cpp-python --requirement "$pin"
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
    pip wheel --no-cache-dir --no-deps --wheel-dir /wheels ./*.tar.gz
tar --extract --strip-components=1 --file ./*.tar.gz

# build FOLDER TARGET CMAKE_OPTION...
build() {
    folder=$1
    target=$2
    shift 2
    cmake -G Ninja -S vendor/llama.cpp -B "$folder" -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_NATIVE=OFF "$@"
    cmake --build "$folder" --target "$target"
}

build build llama "$@"
cp -P build/bin/lib*.so* /llama/
case "$(uname -m) $*" in
*GGML_NATIVE=ON*) ;; # for this very CPU already
x86_64*)
    build build-avx512 ggml-cpu -DGGML_AVX512=ON
    mkdir -p /llama/glibc-hwcaps/x86-64-v4
    cp build-avx512/bin/libggml-cpu.so.0 /llama/glibc-hwcaps/x86-64-v4/
    ;;
esac
