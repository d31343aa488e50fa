// The module _C_cuda: loading it registers the CUDA kernels for the schemas of csrc/ops.cpp (the module _C, which
// must be loaded first). It needs a torch with CUDA, but no device, and has a CUDA runtime of its own in it.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of poh_ext";
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] = POH_CUDA_COMPILER;
    info["architectures"] = POH_CUDA_ARCHITECTURES;
    info["torch_built_against"] = POH_TORCH_BUILT;
    return info;
  });
}
