// The module _C_cuda: loading it registers the CUDA kernels for the schemas of csrc/ops.cpp (the module _C, which
// must be loaded first). It needs a torch with CUDA, but no device, and has a CUDA runtime of its own in it.
#include "common/python_module.h"

POH_PYTHON_MODULE(_C_cuda, "CUDA kernels of poh_ext", {"compiler", POH_CUDA_COMPILER},
                  {"architectures", POH_CUDA_ARCHITECTURES}, {"torch_built_against", POH_TORCH_BUILT})
