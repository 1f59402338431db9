// The variables of each launcher, alone, together and wrong.
#include <gtest/gtest.h>

#include <fstream>
#include <list>
#include <utility>
#include <vector>

#include "kvmesh/launcher.hpp"
#include "kvmesh/tcp.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::test {
namespace {

/// The variables that a launcher sets, and no others of a launcher.
class Environment {
 public:
  Environment(std::initializer_list<std::pair<const char*, const char*>> variables) {
    for (const char* name : kAll) set_.emplace_back(name, nullptr);
    for (const auto& [name, value] : variables) set_.emplace_back(name, value);
  }
  ~Environment() {
    while (!set_.empty()) set_.pop_back();  // in reverse order
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  static constexpr const char* kAll[] = {"KVMESH_RANK",
                                         "KVMESH_SIZE",
                                         "KVMESH_RENDEZVOUS",
                                         "KVMESH_SECRET",
                                         "KVMESH_SECRET_FILE",
                                         "KVMESH_JOB",
                                         "KVMESH_PORT",
                                         "KVMESH_ADDRESS",
                                         "OMPI_COMM_WORLD_RANK",
                                         "OMPI_COMM_WORLD_SIZE",
                                         "OMPI_MCA_ess",
                                         "PMI_RANK",
                                         "PMI_SIZE",
                                         "PMIX_RANK",
                                         "RANK",
                                         "WORLD_SIZE",
                                         "TORCHELASTIC_RUN_ID",
                                         "SLURM_PROCID",
                                         "SLURM_STEP_ID",
                                         "SLURM_STEP_NODELIST",
                                         "SLURM_STEP_NUM_TASKS",
                                         "SLURM_NTASKS",
                                         "SLURM_JOB_ID",
                                         "SLURM_JOBID"};
  std::list<Variable> set_;
};

template <class Call>
void expect_refused(Call call, const std::string& says) {
  try {
    call();
    ADD_FAILURE() << "accepted, where it should say: " << says;
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
  }
}

std::optional<TcpOptions> options_of(const char* rank, const char* size, const char* rendezvous) {
  const Environment environment{
      {"KVMESH_RANK", rank}, {"KVMESH_SIZE", size}, {"KVMESH_RENDEZVOUS", rendezvous}};
  return tcp_options_from_environment();
}

TEST(LaunchByHand, ReturnsWhereRanksMeet) {
  EXPECT_FALSE(options_of(nullptr, nullptr, nullptr));
  const auto named = options_of("1", "4", "node-7.cluster:29500");
  ASSERT_TRUE(named);
  EXPECT_EQ(named->rank, 1);
  EXPECT_EQ(named->size, 4);
  EXPECT_EQ(named->host, "node-7.cluster");
  EXPECT_EQ(named->port, 29500);
  EXPECT_TRUE(named->address.empty());
  EXPECT_TRUE(named->secret.empty());
  const auto v6 = options_of("0", "1", "[fe80::1]:65535");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host, "fe80::1");
  EXPECT_EQ(v6->port, 65535);
}

TEST(LaunchByHand, ReturnsAddressSecretAndJob) {
  const Environment environment{{"KVMESH_RANK", "1"},
                                {"KVMESH_SIZE", "4"},
                                {"KVMESH_RENDEZVOUS", "a:1"},
                                {"KVMESH_ADDRESS", "10.0.0.5"},
                                {"KVMESH_SECRET", "open sesame"},
                                {"KVMESH_JOB", "7"}};
  const auto options = tcp_options_from_environment();
  ASSERT_TRUE(options);
  EXPECT_EQ(options->address, "10.0.0.5");
  EXPECT_EQ(options->secret, "open sesame");
  EXPECT_EQ(options->job, "7");
}

TEST(LaunchByHand, ReadsTheSecretFromAFile) {
  const std::string path = testing::TempDir() + "/kvmesh_secret";
  std::ofstream(path) << "open sesame\n";
  const Environment environment{{"KVMESH_RANK", "1"},
                                {"KVMESH_SIZE", "4"},
                                {"KVMESH_RENDEZVOUS", "a:1"},
                                {"KVMESH_SECRET_FILE", path.c_str()}};
  EXPECT_EQ(tcp_options_from_environment()->secret, "open sesame");
  std::ofstream(path) << "open sesame\r\n\r\n";
  EXPECT_EQ(tcp_options_from_environment()->secret, "open sesame");
  for (const char* nothing : {"", "\n", "\r\n"}) {
    std::ofstream(path) << nothing;
    expect_refused(tcp_options_from_environment, "KVMESH_SECRET_FILE: cannot read a secret");
  }
  const Variable both("KVMESH_SECRET", "x");
  expect_refused(tcp_options_from_environment, "both set");
}

TEST(LaunchByHand, NamesTheInvalidVariable) {
  struct Case {
    const char *rank, *size, *rendezvous, *says;
  };
  for (const Case& wrong :
       {Case{nullptr, "2", "a:1", "no KVMESH_RANK"},
        Case{nullptr, nullptr, "a:1", "no KVMESH_RANK KVMESH_SIZE"},
        Case{"0", nullptr, nullptr, "no KVMESH_SIZE KVMESH_RENDEZVOUS"},
        Case{"0", "", "a:1", "no KVMESH_SIZE"}, Case{"zero", "2", "a:1", "KVMESH_RANK is 'zero'"},
        Case{"0", "2 ", "a:1", "KVMESH_SIZE is '2 '"}, Case{"2", "2", "a:1", "ranks are 0 to 1"},
        Case{"-1", "2", "a:1", "ranks are 0 to 1"}, Case{"0", "2", "a", "not host:port"},
        Case{"0", "2", "a:", "not host:port"}, Case{"0", "2", ":1", "not host:port"},
        Case{"0", "2", "a:65536", "'65536'"}, Case{"0", "2", "::1:5", "in brackets"}}) {
    expect_refused([&] { options_of(wrong.rank, wrong.size, wrong.rendezvous); }, wrong.says);
  }
}

TEST(LaunchFromEnvironment, LoneProcessIsOneRank) {
  const Environment environment{};
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kNone);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.size, 1);
  EXPECT_FALSE(launch.by_tcp || launch.by_mpi());
}

TEST(LaunchFromEnvironment, ReadsOpenMpi) {
  const Environment environment{{"OMPI_COMM_WORLD_RANK", "3"},
                                {"OMPI_COMM_WORLD_SIZE", "8"},
                                {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                {"PMIX_RANK", "3"},
                                {"PMIX_NAMESPACE", "1234"},
                                // mpirun inside a Slurm job, which has started Open MPI's daemon:
                                {"SLURM_PROCID", "0"},
                                {"SLURM_STEP_NUM_TASKS", "4"},
                                {"SLURM_STEP_NODELIST", "a"}};
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 2);
  EXPECT_EQ(launch.job, "1234");
  EXPECT_TRUE(launch.by_mpi());
}

TEST(LaunchFromEnvironment, OpenMpiSingletonIsOneRank) {
  const Environment environment{{"PMIX_RANK", "0"}, {"OMPI_MCA_ess", "singleton"}};
  EXPECT_EQ(launch_from_environment().launcher, Launcher::kNone);
}

TEST(LaunchFromEnvironment, ReadsPmi) {
  const Environment environment{
      {"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}};
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kPmi);
  EXPECT_EQ(launch.rank, 2);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.local_rank, 0);
  EXPECT_EQ(launch.local_size, 2);
  EXPECT_TRUE(launch.by_mpi());
}

TEST(LaunchFromEnvironment, ReadsPmixWithOrWithoutSlurm) {
  const Environment environment{{"PMIX_RANK", "2"}};
  EXPECT_EQ(launch_from_environment().rank, 2);
  EXPECT_EQ(launch_from_environment().size, 0);
  EXPECT_TRUE(launch_from_environment().by_mpi());
  const Variable rank("SLURM_PROCID", "2"), size("SLURM_NTASKS", "4"),
      nodes("SLURM_STEP_NODELIST", "node[3-4]");
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kPmix);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.host, "node3") << "where the ranks meet if MPI turns out to be alone";
  EXPECT_TRUE(launch.by_mpi());
}

TEST(LaunchFromEnvironment, ReadsSlurm) {
  const Environment environment{{"SLURM_PROCID", "5"},
                                {"SLURM_NTASKS", "8"},
                                {"SLURM_LOCALID", "1"},
                                {"SLURM_NODEID", "1"},
                                {"SLURM_STEP_TASKS_PER_NODE", "4,2(x2)"},
                                {"SLURM_JOB_ID", "171"},
                                {"SLURM_STEP_ID", "2"},
                                {"SLURM_STEP_NODELIST", "node[007-009,12]"}};
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kSlurm);
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 2);
  EXPECT_EQ(launch.job, "171.2");
  const auto options = tcp_options_from_environment();
  ASSERT_TRUE(options);
  EXPECT_EQ(options->host, "node007");
  EXPECT_EQ(options->port, 20000 + 171 * 7 + 2);
  EXPECT_EQ(options->job, "171.2");
  const Variable port("KVMESH_PORT", "4711");
  EXPECT_EQ(tcp_options_from_environment()->port, 4711);
}

// sbatch runs its script with variables of the job, but not as a task of a step.
TEST(LaunchFromEnvironment, BatchScriptIsOneRank) {
  const Environment environment{
      {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_JOB_ID", "171"}};
  EXPECT_EQ(launch_from_environment().launcher, Launcher::kNone);
}

TEST(LaunchFromEnvironment, ReadsTorchrun) {
  const Environment environment{{"RANK", "1"},
                                {"WORLD_SIZE", "4"},
                                {"LOCAL_RANK", "1"},
                                {"LOCAL_WORLD_SIZE", "2"},
                                {"MASTER_ADDR", "node-1"},
                                {"MASTER_PORT", "29500"},
                                {"TORCHELASTIC_RUN_ID", "ab"},
                                // torchrun started by mpirun, once per node:
                                {"OMPI_COMM_WORLD_RANK", "0"},
                                {"OMPI_COMM_WORLD_SIZE", "2"}};
  const Launch launch = launch_from_environment();
  EXPECT_EQ(launch.launcher, Launcher::kTorchrun);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 2);
  EXPECT_FALSE(launch.by_mpi());
  const auto options = tcp_options_from_environment();
  ASSERT_TRUE(options);
  EXPECT_EQ(options->rank, 1);
  EXPECT_EQ(options->size, 4);
  EXPECT_EQ(options->host, "node-1");
  EXPECT_EQ(options->port, 30500) << "torchrun itself listens on MASTER_PORT";
  EXPECT_EQ(options->job, "ab");
}

TEST(LaunchFromEnvironment, TakesRankAndSizeOfAnyLauncherWithARendezvous) {
  const Environment environment{
      {"KVMESH_RENDEZVOUS", "node-1:5"}, {"PMI_RANK", "2"}, {"PMI_SIZE", "4"}};
  const auto options = tcp_options_from_environment();
  ASSERT_TRUE(options);
  EXPECT_EQ(options->rank, 2);
  EXPECT_EQ(options->size, 4);
  EXPECT_EQ(options->host, "node-1");
  EXPECT_FALSE(MpiSession::launched_by_mpirun());
}

TEST(LaunchFromEnvironment, NamesTheInvalidVariable) {
  struct Case {
    std::vector<std::pair<const char*, const char*>> variables;
    const char* says;
  };
  const std::vector<Case> cases{
      {{{"OMPI_COMM_WORLD_SIZE", "2"}}, "no OMPI_COMM_WORLD_RANK"},
      {{{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "2"}}, "OMPI_COMM_WORLD_RANK is 2"},
      {{{"PMI_RANK", "0"}}, "no PMI_SIZE"},
      {{{"PMI_RANK", "x"}, {"PMI_SIZE", "2"}}, "PMI_RANK is 'x', not a number"},
      {{{"PMIX_RANK", "-3"}}, "PMIX_RANK is -3"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}}, "no MASTER_ADDR MASTER_PORT"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "x"}},
       "MASTER_PORT is 'x'"},
      {{{"SLURM_PROCID", "4"}, {"SLURM_STEP_NUM_TASKS", "4"}}, "SLURM_PROCID is 4"},
      {{{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}}, "no SLURM_NTASKS"},
      {{{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_LOCALID", "-1"}},
       "SLURM_LOCALID is -1"},
      {{{"KVMESH_PORT", "70000"}}, "KVMESH_PORT is '70000'"}};
  for (const Case& wrong : cases) {
    const Environment environment{
        {"SLURM_LOCALID", nullptr}, {"MASTER_ADDR", nullptr}, {"MASTER_PORT", nullptr}};
    std::list<Variable> set;
    for (const auto& [name, value] : wrong.variables) set.emplace_back(name, value);
    expect_refused(launch_from_environment, wrong.says);
  }
}

TEST(MakeLaunchedCommunicator, RejectsFewerRanksThanTheJob) {
  const auto expect_error = [](const std::vector<std::string>& words) {
    try {
      make_launched_communicator();
      ADD_FAILURE() << "a mesh of one in a job of more";
    } catch (const RendezvousError& error) {
      for (const std::string& word : words) {
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      }
    }
  };
  // Slurm without the list of nodes, so that the ranks cannot find one another.
  const Environment environment{{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "4"}};
  expect_error({"Slurm started 4 ranks, this one as rank 1", "has 1", "KVMESH_RENDEZVOUS"});
}

}  // namespace
}  // namespace kvmesh::test
