/* The part of DLPack's ABI that kvmesh_tensor_t takes the place of, under the names and the include
   guard of dlpack.h, which an engine includes before kvmesh.h. */
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_

#include <stdint.h>

typedef struct {
  int32_t device_type; /* an enumeration in dlpack.h */
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DLTensor;

#endif
