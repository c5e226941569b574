# The data loader's tests, one file per part.
foreach(part pixels dataset)
  include(${CMAKE_CURRENT_LIST_DIR}/data_loader_${part}.inc OPTIONAL)
endforeach()
