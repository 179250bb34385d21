// Plans of one mask that each end at another allocation, then of a second mask. Prints after how many
// of the failures the plan says it is whole, or the second one is wrong; then how many there were.
#include "mask_plan.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>

namespace {

constexpr int num_rows = 8, num_cells = 64;
long num_left = -1;  // allocations until one fails; -1: none does

struct Mask {
    uint16_t values[num_rows][num_cells];

    explicit Mask(int seed) {
        std::mt19937 random(seed);
        for (auto & row : values) {
            for (uint16_t & value : row) {
                value = random() % 3 ? 0 : 0xfc00;
            }
        }
    }

    medusa::MaskRows rows() const {
        return {reinterpret_cast<const char *>(values), sizeof values[0], num_rows, num_cells};
    }
};

bool fails_at(long allocation, medusa::MaskPlan & plan, const Mask & mask) {
    num_left = allocation;
    try {
        plan.build(mask.rows(), nullptr, 0);
    } catch (const std::bad_alloc &) {
        num_left = -1;
        return true;
    }
    num_left = -1;
    return false;
}

}  // namespace

void * operator new(size_t size) {
    if (num_left == 0) {
        throw std::bad_alloc();
    }
    num_left -= num_left > 0;
    return std::malloc(size ? size : 1);
}

void operator delete(void * memory) noexcept {
    std::free(memory);
}

void operator delete(void * memory, size_t) noexcept {
    std::free(memory);
}

int main() {
    const Mask first(1), second(2);
    medusa::MaskPlan expected;
    expected.build(second.rows(), nullptr, 0);
    int num_failures = 0, num_wrong = 0;
    for (medusa::MaskPlan plan; fails_at(num_failures, plan, first); plan = {}) {
        num_failures++;
        const bool is_whole = plan.is_for(first.rows(), nullptr, 0);
        plan.build(second.rows(), nullptr, 0);
        num_wrong += is_whole || plan.cells != expected.cells ||
                     plan.num_cells != expected.num_cells ||
                     plan.segments.size() != expected.segments.size();
    }
    std::printf("%d %d\n", num_wrong, num_failures);
}
