// Lets on_cpu.h run the warps of a block side by side, for ThreadSanitizer to watch (-DDQX_ON_CPU
// -DDQX_ON_THREADS -fsanitize=thread): it finds two warps that use one place of memory without a
// barrier between them. The lanes of a warp run one after another, as they do without; so do the
// warps of a group where a kernel multiplies by groups (warpgroup.cuh).
//
// Asynchronous copies are made at once, or as late as they may: when their thread waits for them.
// The first shows what is overwritten while it is read, the second what is read too early.
#pragma once

#include <pthread.h>

#include <cstring>
#include <deque>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace dqx {

// What all threads of a block share.
struct Team {
  pthread_barrier_t barrier;
};

inline thread_local Team* team = nullptr;
// Of this host thread: which of the team it is, for how many threads it stands, which it does now.
inline thread_local int place_in_team = 0, share_of_team = 32, lane_at_work = 0;
inline bool late_copies = false, backwards = false;          // for all launches that follow

// The thread that does step `step` of `count`.
inline int turn(int step, int count) { return backwards ? count - 1 - step : step; }

inline void wait_for_team() { pthread_barrier_wait(&team->barrier); }

// The copies that the lanes of a warp have started, in groups.
using Copies = std::vector<std::function<void()>>;
struct Copier {
  Copies open;
  std::deque<Copies> closed;
};
constexpr int MOST_SHARE = 128;
inline thread_local Copier copiers[MOST_SHARE];

inline void start_copy(std::function<void()> copy) {
  if (late_copies) {
    copiers[lane_at_work % MOST_SHARE].open.push_back(std::move(copy));
  } else {
    copy();
  }
}

inline void close_started() {
  Copier& copier = copiers[lane_at_work % MOST_SHARE];
  copier.closed.push_back(std::exchange(copier.open, {}));
}

// Makes all copies but those of the last `left` groups.
inline void make_copies(Copier& copier, size_t left) {
  for (; copier.closed.size() > left; copier.closed.pop_front()) {
    for (const auto& copy : copier.closed.front()) copy();
  }
}

inline void make_copies(size_t left) { make_copies(copiers[lane_at_work % MOST_SHARE], left); }

// Runs `block` on a host thread for each `share` of the threads, for every block of the grid after
// another.
template <class Grid, class Block>
void run_team(int threads_of_block, int share, const Grid& each_block, const Block& block) {
  const int count = (threads_of_block + share - 1) / share;
  Team shared;
  pthread_barrier_init(&shared.barrier, nullptr, static_cast<unsigned>(count));
  const auto work = [&](int place) {
    team = &shared;
    place_in_team = place;
    share_of_team = share;
    each_block([&] {
      block();
      for (Copier& copier : copiers) copier = {};  // nobody waits for them any more
      wait_for_team();
    });
  };
  std::vector<std::thread> threads;
  for (int place = 0; place < count; ++place) threads.emplace_back(work, place);
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&shared.barrier);
}

}  // namespace dqx
