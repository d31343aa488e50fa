// The Python face of a compiled module: `build_info()`, a dict of strings. It uses the limited API of Python 3.10
// (Py_LIMITED_API, set by CMake), so one build serves every later Python; the kernels themselves need no Python.
#pragma once

#include <Python.h>

#include <initializer_list>
#include <utility>

namespace poh {

template <int n>
PyObject* dict_of(const std::pair<const char*, const char*> (&facts)[n]) {
  PyObject* dict = PyDict_New();
  for (const auto& [key, text] : facts) {
    PyObject* value = dict == nullptr ? nullptr : PyUnicode_FromString(text);
    if (value == nullptr || PyDict_SetItemString(dict, key, value) < 0) Py_CLEAR(dict);
    Py_XDECREF(value);
  }
  return dict;
}

}  // namespace poh

#define POH_STRING_(x) #x
#define POH_STRING(x) POH_STRING_(x)
#define POH_JOIN_(a, b) a##b
#define POH_JOIN(a, b) POH_JOIN_(a, b)

#if defined(__VERSION__)
#define POH_COMPILER __VERSION__
#elif defined(_MSC_VER)
#define POH_COMPILER "MSVC " POH_STRING(_MSC_VER)
#else
#define POH_COMPILER "unknown"
#endif

// POH_PYTHON_MODULE(name, doc, {key, text}, ...): at most one in a library.
#define POH_PYTHON_MODULE(name, doc, ...)                                                                    \
  static PyObject* poh_build_info(PyObject*, PyObject*) {                                                    \
    static const std::pair<const char*, const char*> facts[] = {__VA_ARGS__};                                \
    return poh::dict_of(facts);                                                                              \
  }                                                                                                          \
  PyMODINIT_FUNC POH_JOIN(PyInit_, name)() {                                                                 \
    static PyMethodDef methods[] = {{"build_info", poh_build_info, METH_NOARGS, "What was built, and how."}, \
                                    {nullptr, nullptr, 0, nullptr}};                                         \
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, POH_STRING(name), doc, 0, methods,               \
                                     nullptr, nullptr, nullptr, nullptr};                                    \
    return PyModule_Create(&definition);                                                                     \
  }
