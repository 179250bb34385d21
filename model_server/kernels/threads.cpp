#include "threads.h"

#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <immintrin.h>
#include <mutex>
#include <omp.h>
#include <signal.h>
#include <thread>
#include <vector>

namespace medusa {
namespace {

constexpr int item_bits = 20;
constexpr int max_claim = 4;  // what a thread that is put aside may hold back
// Longer than what lies between two loops of a step, shorter than anybody notices.
constexpr auto spinning = std::chrono::microseconds(100);
constexpr int looks = 32;  // between two glances at the clock

template <class Condition>
bool spun_until(const Condition & is_true) {
    const auto end = std::chrono::steady_clock::now() + spinning;
    do {
        for (int i = 0; i < looks; i++) {
            if (is_true()) {
                return true;
            }
            _mm_pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// A moment that one or several threads wait for: spinning at first, asleep later.
class Moment {
public:
    template <class Condition>
    void wait(const Condition & has_come) {
        if (spun_until(has_come)) {
            return;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        num_asleep_++;
        woken_.wait(lock, has_come);
        num_asleep_--;
    }

    // After what makes the condition true.
    void announce() {
        if (num_asleep_) {
            std::lock_guard<std::mutex> lock(mutex_);
            woken_.notify_all();
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable woken_;
    std::atomic<int> num_asleep_{0};
};

// Signals are for the threads that the process started itself.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
};

class Pool {
public:
    ~Pool() { resize(1); }

    int num_threads() const { return int(helpers_.size()) + 1; }

    void resize(int num_threads) {
        const std::lock_guard<std::mutex> lock(in_use_);
        if (num_threads == this->num_threads()) {
            return;
        }
        is_ending_ = true;
        begun_.announce();
        for (std::thread & helper : helpers_) {
            helper.join();
        }
        helpers_.clear();
        is_ending_ = false;
        num_threads_ = num_threads;
        const SignalsBlocked blocked;
        for (int thread = 1; thread < num_threads; thread++) {
            helpers_.emplace_back([this, thread] { help(thread); });
        }
    }

    // False where another caller's loop runs.
    bool run(int num_items, Loop loop, const void * work) {
        const std::unique_lock<std::mutex> lock(in_use_, std::try_to_lock);
        if (!lock) {
            return false;
        }
        loop_ = loop;
        work_ = work;
        num_done_ = 0;
        const uint32_t number = items_.start(num_items);
        begun_.announce();
        take_part(number, 0);
        done_.wait([&] { return num_done_ == num_items; });
        return true;
    }

private:
    std::mutex in_use_;
    std::vector<std::thread> helpers_;
    std::atomic<bool> is_ending_{false};
    int num_threads_ = 1;
    Items items_;
    Loop loop_;           // these two are read only by who has claimed items: they hold until
    const void * work_;   // all claimed ones are done
    std::atomic<int> num_done_{0};
    Moment begun_, done_;

    void take_part(uint32_t number, int thread) {
        Share share(items_, number, thread, num_threads_);
        if (!share.is_empty()) {
            loop_(work_, share);
            num_done_ += share.num_taken();
        }
    }

    void help(int thread) {
        uint32_t seen = items_.loop();
        while (true) {
            begun_.wait([&] { return items_.loop() != seen || is_ending_; });
            if (is_ending_) {
                return;
            }
            seen = items_.loop();
            take_part(seen, thread);
            done_.announce();
        }
    }
};

Pool & pool() {
    static Pool & the_pool = *new Pool;  // never freed: at exit its threads may still wait
    return the_pool;
}

}  // namespace

uint32_t Items::start(int num_items) {
    GGML_ASSERT(num_items <= max_items);
    const uint32_t number = (loop() + 1) & 0xffffff;
    state_ = uint64_t(number) << 2 * item_bits | uint64_t(num_items) << item_bits;
    return number;
}

Range Items::claim(uint32_t loop, int num_threads, int num_left) {
    uint64_t state = state_;
    while (true) {
        const int total = state >> item_bits & max_items, next = state & max_items;
        if (state >> 2 * item_bits != loop || total - next <= num_left) {
            return {next, next};
        }
        const int size = std::clamp((total - next) / (4 * num_threads), 1, max_claim);
        if (state_.compare_exchange_weak(state, state + size)) {
            return {next, next + size};
        }
    }
}

void share_out(int num_items, int llama_threads, Loop loop, const void * work) {
    if (num_items > 1 && llama_threads <= 1 && pool().num_threads() > 1 &&
        pool().run(num_items, loop, work)) {
        return;
    }
    Items items;
    const uint32_t number = items.start(num_items);
    const int num_threads = num_items > 1 ? llama_threads : 1;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        Share share(items, number, omp_get_thread_num(), num_threads);
        loop(work, share);
    }
}

void set_own_threads(int num_threads) {
    pool().resize(std::max(1, num_threads));
}

int max_threads(int llama_threads) {
    return std::max(llama_threads, pool().num_threads());
}

}  // namespace medusa
