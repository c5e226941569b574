# The worker's tests, one file per part.
foreach(part daemon model trainer evaluate cuda)
  include(${CMAKE_CURRENT_LIST_DIR}/worker_${part}.inc OPTIONAL)
endforeach()
