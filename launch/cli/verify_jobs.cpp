#include "launch/cli/verify_jobs.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>

#include "kvmesh/device_memory.hpp"
#include "kvmesh/launcher.hpp"
#include "launch/cli/child_process.hpp"
#include "launch/cli/clock.hpp"
#include "launch/common/scale_flag.hpp"

namespace kvmesh::launch {
namespace {

constexpr int kMostJobs = 16;  // contexts that share a GPU and its memory
constexpr const char* kReady = "ready";

int usable_cores() {
  cpu_set_t cores;
  return ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(1, CPU_COUNT(&cores)) : 1;
}

struct Job {
  explicit Job(const std::vector<std::string>& command) : process(command) {}
  ChildProcess process;
  std::optional<std::uint64_t> seed{};         // of the case that it runs
  std::optional<Clock::time_point> stopped{};  // when that was first seen, if it is
};

class Jobs {
 public:
  Jobs(const VerifyPlace& place, const VerifyOptions& options, int timeout_s, Output& out)
      : place_(place), seeds_(options), timeout_s_(timeout_s), out_(out) {}

  // Returns the exit status of a worker that ended before it was ready.
  std::optional<int> start(const std::vector<std::string>& command) {
    // The first one alone, so that an error which all would have is printed once.
    if (const std::optional<int> failed = start_one(command)) return failed;
    for (int i = 1; i < place_.jobs; ++i) {
      jobs_.push_back(std::make_unique<Job>(command));
    }
    return std::nullopt;
  }

  void run() {
    for (const auto& job : jobs_) give(*job);
    while (is_busy()) {
      for (Job* job : wait_for_lines()) take_line(*job);
      for (const auto& job : jobs_) check_goes_on(*job);
      totals_.signal = std::max(totals_.signal, interrupt());
    }
  }

  VerifyTotals& totals() { return totals_; }
  std::uint64_t first_seed() const { return seeds_.first(); }

 private:
  std::optional<int> start_one(const std::vector<std::string>& command) {
    auto job = std::make_unique<Job>(command);
    if (job->process.read_line() != kReady) {
      int status = 0;
      job->process.wait(status);
      return status == 0 ? 1 : status;
    }
    jobs_.push_back(std::move(job));
    return std::nullopt;
  }

  bool is_busy() const {
    return std::ranges::any_of(jobs_, [](const auto& job) { return job->seed.has_value(); });
  }

  void give(Job& job) {
    update_time();
    job.seed = has_lost_one_ ? std::nullopt : seeds_.next(totals_);
    if (job.seed) job.process.send(fmt::format("{}\n", *job.seed));  // a failure shows as its end
  }

  // Blocks until a busy worker has written, has ended, or a signal has come, at most a second.
  std::vector<Job*> wait_for_lines() {
    std::vector<Job*> busy, ready;
    std::vector<pollfd> polled;
    for (const auto& job : jobs_) {
      if (!job->seed) continue;
      busy.push_back(job.get());
      if (job->process.has_line()) ready.push_back(job.get());
      polled.push_back({.fd = job->process.descriptor(), .events = POLLIN, .revents = 0});
    }
    if (!ready.empty() || ::poll(polled.data(), polled.size(), 1000) < 0) return ready;
    for (std::size_t i = 0; i < busy.size(); ++i) {
      if (polled[i].revents != 0) ready.push_back(busy[i]);
    }
    return ready;
  }

  void take_line(Job& job) {
    const std::optional<std::string> line = job.process.read_line();
    if (line == kReady) return;
    if (!line) return lose(job);
    totals_.add(outcome_from(*line));
    update_time();
    out_.progress([&] { return text_of(totals_, place_); });
    give(job);
  }

  // Kills a worker that is stopped for too long. One that takes long, as for kernels, is left
  // alone.
  void check_goes_on(Job& job) {
    if (!job.seed || !job.process.is_stopped()) {
      job.stopped.reset();
    } else if (!job.stopped) {
      job.stopped = Clock::now();
    } else if (seconds_since(*job.stopped) >= timeout_s_) {
      job.process.kill();
      lose(job, fmt::format("was stopped for {} s, and killed", timeout_s_));
    }
  }

  void lose(Job& job, std::string how = {}) {
    int status = 0;
    const std::string end = job.process.wait(status);
    if (how.empty()) how = "ended: " + end;
    totals_.add({.seed = *job.seed, .failed = true});
    out_.tell(fmt::format("verify: the process of seed {} {}\n  again: {}\n", *job.seed, how,
                          command_for(place_, *job.seed)));
    job.seed.reset();
    has_lost_one_ = true;
  }

  void update_time() { totals_.seconds = seconds_since(start_); }

  const VerifyPlace& place_;
  SeedRange seeds_;
  int timeout_s_;
  Output& out_;
  Clock::time_point start_ = Clock::now();
  std::vector<std::unique_ptr<Job>> jobs_;
  VerifyTotals totals_;
  bool has_lost_one_ = false;
};

}  // namespace

int verify_jobs(const VerifyOptions& options, const std::string& device) {
  const Launch launch = launch_from_environment();
  if (options.jobs.value_or(1) > 1 && launch.size != 1) {
    throw InvalidArgument(fmt::format(
        "--jobs {} under {}: its ranks run each case together, in one process per rank; start "
        "kvmesh verify alone, or leave --jobs out",
        *options.jobs, name(launch.launcher)));
  }
  const bool may_have_many = device == "cuda" && launch.launcher == Launcher::kNone;
  const int jobs = options.jobs.value_or(may_have_many ? std::min(usable_cores(), kMostJobs) : 1);
  return options.count > 0 ? static_cast<int>(std::min<std::int64_t>(jobs, options.count)) : jobs;
}

std::vector<std::string> worker_command(const VerifyPlace& place, int threads, int timeout_s) {
  const int share = std::max(1, usable_cores() / (place.jobs * place.ranks));
  std::vector<std::string> command{"/proc/self/exe", "verify", "--worker", "--device",
                                   place.device};
  const auto add = [&](const char* flag, int number) {
    command.insert(command.end(), {flag, std::to_string(number)});
  };
  add("--threads", threads > 0 ? threads : share);
  add("--head-parallel", place.head_parallel);
  add("--timeout", timeout_s);
  if (place.ranks > 1) add("--ranks", place.ranks);
  if (place.rules.reproducible) command.emplace_back("--reproducible");
  if (place.rules.kv_scales) {
    command.insert(command.end(), {"--kv-scales", typed(*place.rules.kv_scales)});
  }
  return command;
}

int run_verify_jobs(const std::vector<std::string>& command, const VerifyPlace& place,
                    const VerifyOptions& options, int timeout_s, const std::string& json,
                    Output& out) {
  Jobs jobs(place, options, timeout_s, out);
  catch_interrupts();
  if (const std::optional<int> failed = jobs.start(command)) return *failed;
  jobs.run();
  write_result(jobs.totals(), place, jobs.first_seed(), json, out);
  return jobs.totals().status();
}

int run_verify_worker(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                      Output& out) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto run = [&](Mesh& mine) {
    const bool is_first = mine.rank().value == 0;
    if (is_first) out.put(fmt::format("{}\n", kReady));
    run_cases(
        mine, options.rules,
        [] {
          std::uint64_t seed = 0;
          return std::cin >> seed ? std::optional(seed) : std::nullopt;
        },
        [&](const CaseOutcome& outcome) {
          if (is_first) out.put(line_of(outcome));
        });
  };
  if (ranks == 0) {
    Mesh mine(make_single_communicator(), mesh);
    run(mine);
  } else {
    run_on_threads(ranks, run, mesh);
  }
  return 0;
}

}  // namespace kvmesh::launch
