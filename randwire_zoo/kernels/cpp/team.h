// The threads of a parallel region as a team, which shares tasks out.
//
// Shares that are fixed beforehand and barriers that spin are fast as long as every thread has a core of its own. When
// another process takes one of the cores, all threads wait at every barrier until theirs runs again, and keep the
// scheduler from moving it by waiting busily. So whoever is free takes the next task, nobody waits for a thread but
// only for tasks, and whoever has waited for a moment sleeps. What a task computes must not depend on who does it: sums
// have a place for each task, not for each thread, so that the same number of threads gives the same bits.
//
// No exception may leave a parallel region. So a thread that gets no memory leaves the team, and the others follow when
// they would have to wait: for what it had begun, perhaps.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>

namespace {

constexpr int64_t TASKS = 4;  // for each thread, of what is shared out at one time, if there are enough

class Team {
  static constexpr int SPINS = 64;                          // between two looks at the clock
  static constexpr std::chrono::microseconds PATIENCE{30};  // about what it costs to sleep and to be woken

  alignas(64) std::atomic<uint64_t> next{0};  // the number of the share, and the task that is to be taken next
  std::atomic<bool> failed{false};            // some thread got no memory; beside what whoever waits reads anyway
  alignas(64) std::atomic<int64_t> done{0};   // tasks of this share
  std::mutex mutex;
  std::condition_variable over;

  static uint32_t number(uint64_t place) { return static_cast<uint32_t>(place >> 32); }

 public:
  // One thread's way through the shares, of which all threads go through the same in the same order.
  class Member {
    Team& team;
    uint32_t now = 0;

   public:
    explicit Member(Team& team) : team(team) {}

    // Has task(0) to task(count - 1) called, each by one thread, and returns when all are done. A thread that comes
    // late finds them done, so `count` must not depend on what later shares write.
    template <class Task> void share(int64_t count, Task task) {
      if (count <= 0) return;
      team.work(now++, count, task);
    }

    // The same for two kinds of tasks, mixed evenly: what waits for memory, and what keeps the processor busy.
    template <class One, class Two> void share(int64_t ones, One one, int64_t twos, Two two) {
      const int64_t all = ones + twos;
      share(all, [&](int64_t t) {
        const int64_t before = t * twos / all;
        if ((t + 1) * twos / all > before) two(before);
        else one(t - before);
      });
    }
  };

  // What each thread of the region calls, with what it is to do as a member.
  template <class Work> void join(Work work) noexcept {
    try {
      work(Member(*this));
    } catch (const std::bad_alloc&) {
      {
        std::lock_guard<std::mutex> lock(mutex);
        failed.store(true, std::memory_order_release);
      }
      over.notify_all();
    }
  }

  // After the region: whether nobody has left it.
  void check() const {
    if (failed.load(std::memory_order_acquire)) throw std::bad_alloc();
  }

 private:
  template <class Task> void work(uint32_t now, int64_t count, Task& task) {
    uint64_t place = next.load(std::memory_order_acquire);
    while (number(place) == now) {
      const int64_t t = static_cast<uint32_t>(place);
      if (t >= count) return wait(now);
      if (!next.compare_exchange_weak(place, place + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      task(t);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) return finish(now);
      place = next.load(std::memory_order_acquire);
    }
  }

  void finish(uint32_t now) {
    done.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex);
      next.store(static_cast<uint64_t>(now + 1) << 32, std::memory_order_release);
    }
    over.notify_all();
  }

  void wait(uint32_t now) {
    auto is_over = [&] {
      if (number(next.load(std::memory_order_acquire)) != now) return true;
      check();
      return false;
    };
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < SPINS; i++) {
        if (is_over()) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() - start < PATIENCE);
    std::unique_lock<std::mutex> lock(mutex);
    over.wait(lock, is_over);
  }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }
};

}  // namespace
