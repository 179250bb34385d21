// Products of every quantized type, for every number of rows, by the kernels for AVX2 with VNNI and
// without. Prints those whose bits differ, then how many were alike.
#include "matmul_kernels.h"

#include <cstdio>
#include <cstring>
#include <random>

namespace {

using namespace medusa;

constexpr int num_values = 768, num_outputs = 13, most_rows = 8;
constexpr size_t room = 64 * 1024;

std::mt19937 random_bits(0);

struct Memory {
    alignas(64) uint8_t bytes[room];
};

// Any quants; scales of a usual size.
void fill(const Layout & layout, int64_t num_blocks, Memory & group) {
    for (uint8_t & byte : group.bytes) {
        byte = uint8_t(random_bits());
    }
    const size_t size = plane_bytes(layout.fields[0], num_blocks);
    for (size_t i = 0; i < size; i += 2) {
        const uint16_t half = 0x2c00 | (random_bits() & 0x83ff);
        std::memcpy(group.bytes + i, &half, sizeof half);
    }
}

struct Product {
    float out[most_rows][group_rows] = {};

    Product(const MatmulKernels & kernels, const Memory & group, int64_t num_blocks,
            const float (&rows)[most_rows][num_values], int num_rows) {
        static Memory panel;
        for (int row = 0; row < num_rows; row++) {
            kernels.prepare(rows[row], 0, num_values / block_size, {panel.bytes, num_rows, row});
        }
        kernels.pass({group.bytes, nullptr, panel.bytes, num_blocks, out[0], group_rows,
            num_outputs, num_rows});
    }
};

}  // namespace

int main() {
    int num_alike = 0;
    float rows[most_rows][num_values];
    std::normal_distribution<float> normal;
    for (auto & row : rows) {
        for (float & value : row) {
            value = normal(random_bits);
        }
    }
    for (const Layout & layout : {q4_0, q4_1, q8_0, q4_k, q6_k}) {
        static Memory group;
        const int64_t num_blocks = num_values / layout.weights;
        fill(layout, num_blocks, group);
        const auto *plain = matmul_kernels_avx2(layout.type),
                   *vnni = matmul_kernels_avxvnni(layout.type);
        for (int num_rows = 1; num_rows <= vnni->max_rows; num_rows++) {
            const Product one(*plain, group, num_blocks, rows, num_rows);
            const Product other(*vnni, group, num_blocks, rows, num_rows);
            if (std::memcmp(one.out, other.out, sizeof one.out) == 0 && one.out[0][0] != 0) {
                num_alike++;
            } else {
                std::printf("type %d, %d rows\n", layout.type, num_rows);
            }
        }
    }
    std::printf("%d alike\n", num_alike);
}
