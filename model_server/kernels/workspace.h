#pragma once

#include "mask_plan.h"
#include "write_order.h"

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace medusa {

// Memory for intermediate results that only grows.
class Scratch {
public:
    // Room for so many values, aligned to 64 bytes. What it held is lost.
    template <class Value>
    Value * room(size_t num_values) {
        const size_t wanted = (num_values * sizeof(Value) + 63) / 64 * 64;
        if (wanted > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(std::aligned_alloc(64, wanted));
            if (!memory_) {
                throw std::bad_alloc();
            }
            size_ = wanted;
        }
        return static_cast<Value *>(memory_.get());
    }

private:
    struct Free {
        void operator()(void * memory) const { std::free(memory); }
    };

    std::unique_ptr<void, Free> memory_;
    size_t size_ = 0;
};

// What one context's operations keep from one to the next. A context runs in one thread at a time.
struct Workspace {
    int num_threads;
    WriteOrders write_orders;
    std::vector<MaskPlan> mask_plans;
    std::vector<Scratch> scratch;  // of each thread
    Scratch panels;  // of quantized activations
};

}  // namespace medusa
