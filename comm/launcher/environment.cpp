// All variables that launchers set, or users for them. docs/launching.md has the table.
#include "comm/launcher/environment.hpp"

#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "comm/launcher/slurm.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr const char* kRank = "KVMESH_RANK";
constexpr const char* kSize = "KVMESH_SIZE";
constexpr const char* kRendezvous = "KVMESH_RENDEZVOUS";
constexpr const char* kPort = "KVMESH_PORT";

// The ports that the system gives to clients begin at 32768. Jobs of Slurm get one below them by
// their number.
constexpr int kFirstSlurmPort = 20000;
constexpr int kSlurmPorts = 10000;
// torchrun listens on MASTER_PORT itself, so the ranks meet this many ports above it.
constexpr int kAboveMasterPort = 1000;

// Empty if it is not set.
std::string_view variable(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}
bool is_set(const char* name) { return !variable(name).empty(); }

template <class Number>
Number number(std::string_view what, std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc{} && end == text.data() + text.size(), "{} is '{}', not a number",
          what, text);
  return value;
}
template <class Number>
Number number_in(const char* name) {
  return number<Number>(name, variable(name));
}

std::optional<int> count_in(const char* name) {
  if (!is_set(name)) return std::nullopt;
  const int value = number_in<int>(name);
  require(value >= 0, "{} is {}", name, value);
  return value;
}

// Throws unless all are set.
void require_together(std::initializer_list<const char*> names) {
  std::string missing;
  for (const char* name : names) {
    if (!is_set(name)) missing += fmt::format(" {}", name);
  }
  require(missing.empty(), "{} go together, but there is no{}", fmt::join(names, ", "), missing);
}

Launch place_in(Launcher launcher, const char* rank, const char* size) {
  require_together({rank, size});
  Launch launch{.launcher = launcher, .rank = number_in<int>(rank), .size = number_in<int>(size)};
  require(launch.rank >= 0 && launch.rank < launch.size, "{} is {}, {} {}: ranks are 0 to {}", rank,
          launch.rank, size, launch.size, launch.size - 1);
  return launch;
}

Launch torchrun() {
  Launch launch = place_in(Launcher::kTorchrun, "RANK", "WORLD_SIZE");
  launch.local_rank = count_in("LOCAL_RANK");
  launch.local_size = count_in("LOCAL_WORLD_SIZE");
  launch.job = variable("TORCHELASTIC_RUN_ID");
  if (launch.size == 1) return launch;
  require_together({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"});
  const int port = number_in<std::uint16_t>("MASTER_PORT");
  launch.host = variable("MASTER_ADDR");
  launch.port =
      static_cast<std::uint16_t>(port + (port < 60000 ? kAboveMasterPort : -kAboveMasterPort));
  launch.by_tcp = true;
  return launch;
}

bool is_step_of_slurm() {
  return is_set("SLURM_PROCID") && (is_set("SLURM_STEP_ID") || is_set("SLURM_STEP_NODELIST") ||
                                    is_set("SLURM_STEP_NUM_TASKS"));
}

std::optional<int> slurm_local_size() {
  if (is_set("SLURM_STEP_TASKS_PER_NODE") && is_set("SLURM_NODEID")) {
    return slurm_tasks_on_node(variable("SLURM_STEP_TASKS_PER_NODE"),
                               number_in<int>("SLURM_NODEID"));
  }
  return count_in("SLURM_NTASKS_PER_NODE");
}

Launch slurm() {
  const char* size = is_set("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  Launch launch = place_in(Launcher::kSlurm, "SLURM_PROCID", size);
  launch.local_rank = count_in("SLURM_LOCALID");
  launch.local_size = slurm_local_size();
  const auto id_in = [](const char* name) { return is_set(name) ? number_in<long>(name) : 0; };
  const long job = id_in(is_set("SLURM_JOB_ID") ? "SLURM_JOB_ID" : "SLURM_JOBID");
  const long step = id_in("SLURM_STEP_ID");
  launch.job = fmt::format("{}.{}", job, step);
  launch.host = first_slurm_host(variable("SLURM_STEP_NODELIST"));
  launch.port = static_cast<std::uint16_t>(kFirstSlurmPort + (job * 7 + step) % kSlurmPorts);
  launch.by_tcp = launch.size > 1 && !launch.host.empty();
  return launch;
}

Launch open_mpi() {
  Launch launch = place_in(Launcher::kOpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
  launch.local_rank = count_in("OMPI_COMM_WORLD_LOCAL_RANK");
  launch.local_size = count_in("OMPI_COMM_WORLD_LOCAL_SIZE");
  launch.job = variable("PMIX_NAMESPACE");
  return launch;
}

// Slurm says what PMI and PMIx leave out, if it started this process through them.
Launch with_what_slurm_says(Launch launch) {
  if (!is_step_of_slurm()) return launch;
  const Launch step = slurm();
  if (step.rank != launch.rank || (launch.size != 0 && launch.size != step.size)) return launch;
  launch.size = step.size;
  launch.local_rank = step.local_rank;
  launch.local_size = step.local_size;
  launch.job = step.job;
  launch.host = step.host;
  launch.port = step.port;
  return launch;
}

Launch pmi() {
  Launch launch = place_in(Launcher::kPmi, "PMI_RANK", "PMI_SIZE");
  launch.local_rank = count_in("MPI_LOCALRANKID");
  launch.local_size = count_in("MPI_LOCALNRANKS");
  launch.job = variable("PMI_JOBID");
  return with_what_slurm_says(std::move(launch));
}

Launch pmix() {
  const int rank = number_in<int>("PMIX_RANK");
  require(rank >= 0, "PMIX_RANK is {}", rank);
  return with_what_slurm_says({.launcher = Launcher::kPmix,
                               .rank = rank,
                               .size = 0,
                               .job = std::string(variable("PMIX_NAMESPACE"))});
}

// The innermost launcher. Open MPI marks a process that it has started alone as a singleton.
Launch launcher_of_others() {
  if (is_set("TORCHELASTIC_RUN_ID")) return torchrun();
  if (is_set("OMPI_COMM_WORLD_SIZE")) return open_mpi();
  if (is_set("PMI_RANK") || is_set("PMI_SIZE")) return pmi();
  const bool is_singleton = variable("OMPI_MCA_ess") == "singleton";
  if (is_set("PMIX_RANK") && !is_singleton) return pmix();
  if (is_set("RANK") && is_set("WORLD_SIZE")) return torchrun();
  if (is_step_of_slurm()) return slurm();
  return {};
}

// "host:port", "[::1]:port".
void read_rendezvous(std::string_view text, Launch& launch) {
  const std::size_t colon = text.rfind(':');
  require(colon != std::string_view::npos && colon > 0 && colon + 1 < text.size(),
          "{} is '{}', not host:port", kRendezvous, text);
  std::string_view host = text.substr(0, colon);
  const bool in_brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (in_brackets) host = host.substr(1, host.size() - 2);
  require(in_brackets || host.find(':') == std::string_view::npos,
          "{} is '{}': an IPv6 address stands in brackets, [::1]:port", kRendezvous, text);
  launch.host = host;
  launch.port = number<std::uint16_t>("the port in KVMESH_RENDEZVOUS", text.substr(colon + 1));
  launch.by_tcp = true;
}

Launch by_hand() {
  require_together({kRank, kSize, kRendezvous});
  Launch launch = place_in(Launcher::kByHand, kRank, kSize);
  launch.local_rank = count_in("KVMESH_LOCAL_RANK");
  launch.local_size = count_in("KVMESH_LOCAL_SIZE");
  return launch;
}

// Without the line end that editors write.
std::string first_line_of(const char* name) {
  const std::string path(variable(name));
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  if (line.ends_with('\r')) line.pop_back();
  require(!line.empty(), "{}: cannot read a secret from the first line of '{}'", name, path);
  return line;
}

std::string secret() {
  require(!is_set("KVMESH_SECRET") || !is_set("KVMESH_SECRET_FILE"),
          "KVMESH_SECRET and KVMESH_SECRET_FILE are both set: set one");
  if (is_set("KVMESH_SECRET_FILE")) return first_line_of("KVMESH_SECRET_FILE");
  return std::string(variable("KVMESH_SECRET"));
}

}  // namespace

std::string_view name(Launcher launcher) {
  switch (launcher) {
    case Launcher::kNone:
      return "";
    case Launcher::kByHand:
      return "KVMESH_SIZE";
    case Launcher::kTorchrun:
      return "torchrun";
    case Launcher::kOpenMpi:
      return "Open MPI";
    case Launcher::kPmi:
      return "PMI";
    case Launcher::kPmix:
      return "PMIx";
    case Launcher::kSlurm:
      return "Slurm";
  }
  return "";
}

Launch launch_from_environment() {
  const bool is_by_hand = is_set(kRank) || is_set(kSize);
  Launch launch = is_by_hand ? by_hand() : launcher_of_others();
  if (is_set(kRendezvous)) {
    if (launch.launcher == Launcher::kNone || launch.size == 0) {
      require_together({kRank, kSize, kRendezvous});
    }
    read_rendezvous(variable(kRendezvous), launch);
  } else if (is_set(kPort)) {
    launch.port = number_in<std::uint16_t>(kPort);
  }
  if (is_set("KVMESH_JOB")) launch.job = variable("KVMESH_JOB");
  return launch;
}

std::optional<int> rank_for_messages() {
  const char* torchrun = is_set("TORCHELASTIC_RUN_ID") ? "RANK" : kRank;
  for (const char* name :
       {kRank, torchrun, "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "RANK", "SLURM_PROCID"}) {
    const std::string_view text = variable(name);
    int rank = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
    if (error == std::errc{} && end == text.data() + text.size()) return rank;
  }
  return std::nullopt;
}

std::optional<TcpOptions> tcp_options_from_environment() {
  const Launch launch = launch_from_environment();
  if (launch.by_tcp) return tcp_options_of(launch);
  return std::nullopt;
}

TcpOptions tcp_options_of(const Launch& launch) {
  return {.rank = launch.rank,
          .size = launch.size,
          .host = launch.host,
          .port = launch.port,
          .address = std::string(variable("KVMESH_ADDRESS")),
          .secret = secret(),
          .job = launch.job};
}

bool MpiSession::launched_by_mpirun() { return launch_from_environment().by_mpi(); }

std::string host_name() {
  if (is_set("KVMESH_HOST")) return std::string(variable("KVMESH_HOST"));
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace kvmesh
