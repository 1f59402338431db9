/* KVMESH_API marks what the shared library offers; everything else in it is hidden. A public header
   opens its namespace with it (namespace KVMESH_API kvmesh), a C function is declared with it. */
#ifndef KVMESH_API_H
#define KVMESH_API_H

#ifdef __cplusplus
#define KVMESH_API [[gnu::visibility("default")]]
#else
#define KVMESH_API __attribute__((visibility("default")))
#endif

#endif
