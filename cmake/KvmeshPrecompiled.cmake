# The library's own sources share a precompiled header: reading these headers is a third of the time
# that a short source takes. Precompiled headers hide missing includes, and ccache does not store
# objects that use one, so builds for daily work (with ccache), releases and users compile without.
# GCC takes the options of a precompiled header over those of the source: sources whose results depend
# on options of their own have SKIP_PRECOMPILE_HEADERS.
include_guard()

set(kvmesh_precompiled OFF)
if(KVMESH_TESTS AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(kvmesh_precompiled ON)
endif()
option(KVMESH_PRECOMPILED "Precompile common headers of the standard library, fmt and GoogleTest"
       ${kvmesh_precompiled})

if(KVMESH_PRECOMPILED)
  add_library(kvmesh_precompiled OBJECT ${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp)
  target_link_libraries(kvmesh_precompiled PRIVATE fmt::fmt kvmesh_flags kvmesh_odr)
  set_target_properties(kvmesh_precompiled PROPERTIES POSITION_INDEPENDENT_CODE ON
                                                      CXX_VISIBILITY_PRESET hidden
                                                      VISIBILITY_INLINES_HIDDEN ON)
  target_precompile_headers(
    kvmesh_precompiled PRIVATE <algorithm> <chrono> <deque> <functional> <map> <memory> <optional>
                               <span> <string> <string_view> <variant> <vector> <fmt/format.h>)
endif()
