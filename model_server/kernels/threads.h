// Threads that share a loop's items. Where llama.cpp computes with several threads, these are
// OpenMP's, which it uses too: all of them must arrive before anybody goes on. Where it computes
// with one, they are our own: whoever runs takes what is left, so that a thread that the system has
// put aside for another process holds back only what it has taken.

#pragma once

#include "range.h"

#include <atomic>
#include <cstdint>

namespace medusa {

// The items of one loop after another that nobody has taken yet.
class Items {
public:
    static constexpr int max_items = (1 << 20) - 1;

    // Begins the next loop and gives its number: claims by older numbers find nothing any more.
    uint32_t start(int num_items);
    // Nothing where no more than `num_left` are.
    Range claim(uint32_t loop, int num_threads, int num_left = 0);
    uint32_t loop() const { return uint32_t(state_.load() >> 40); }

private:
    std::atomic<uint64_t> state_{0};  // the loop's number, its items, the next one: 24, 20, 20 bits
};

// A thread's way to its part of a loop: ranges of items, smaller towards the end.
class Share {
public:
    Share(Items & items, uint32_t loop, int thread, int num_threads)
        : thread(thread), items_(items), loop_(loop), num_threads_(num_threads) {
        following_ = items_.claim(loop_, num_threads_);
    }

    bool is_empty() const { return following_.size() == 0; }

    bool next(Range & range) {
        range = following_.size() ? following_ : items_.claim(loop_, num_threads_);
        following_ = {0, 0};
        num_taken_ += range.size();
        return range.size() > 0;
    }

    // What next() will give, claimed early so that it can be fetched. Empty towards the end, where
    // what one thread has claimed and not begun another would wait for.
    const Range & following() {
        if (following_.size() == 0) {
            following_ = items_.claim(loop_, num_threads_, 2 * num_threads_);
        }
        return following_;
    }

    int num_taken() const { return num_taken_; }

    const int thread;

private:
    Items & items_;
    uint32_t loop_;
    int num_threads_, num_taken_ = 0;
    Range following_;
};

// Calls work(share) in several threads, until all items are done. Loops of different callers are
// independent of each other.
using Loop = void (*)(const void * work, Share & share);
void share_out(int num_items, int llama_threads, Loop loop, const void * work);

template <class Work>
void share_out(int num_items, int llama_threads, const Work & work) {
    const Loop loop = [](const void * work, Share & share) {
        (*static_cast<const Work *>(work))(share);
    };
    share_out(num_items, llama_threads, loop, &work);
}

// Threads of our own, the caller's included; 1 at first. Not while a loop runs.
void set_own_threads(int num_threads);

// At least so many threads may call work(share), numbered from 0.
int max_threads(int llama_threads);

}  // namespace medusa
