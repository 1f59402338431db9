/* The version of these headers; kvmesh_version() in c/kvmesh.h is that of the library. Before 1.0 a
   new minor number may break programs, also binary ones (the library's SONAME has it); a new patch
   number does not. The build reads its version from here. */
#ifndef KVMESH_VERSION_H
#define KVMESH_VERSION_H

#define KVMESH_VERSION_MAJOR 0
#define KVMESH_VERSION_MINOR 1
#define KVMESH_VERSION_PATCH 0

/* For comparisons: KVMESH_VERSION_NUMBER >= KVMESH_MAKE_VERSION(0, 2, 0). */
#define KVMESH_MAKE_VERSION(major, minor, patch) ((major)*10000 + (minor)*100 + (patch))
#define KVMESH_VERSION_NUMBER \
  KVMESH_MAKE_VERSION(KVMESH_VERSION_MAJOR, KVMESH_VERSION_MINOR, KVMESH_VERSION_PATCH)

#endif
