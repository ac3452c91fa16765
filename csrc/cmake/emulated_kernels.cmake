# mast_ext_emulate_kernels(target source...): runs the CUDA kernels on the CPU (tests/emulation).
#
# They are a library beside the module: its thread-local memory is the kernels' shared memory and
# nothing else. A second library of that name, races/libemulated_kernels.so, is built on demand
# (target emulated_races) and tells the race detector of every load and store; a copy of the module
# beside it finds it.
function(mast_ext_emulate_kernels target)
  set(emulation ${CMAKE_CURRENT_SOURCE_DIR}/tests/emulation)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;$<IF:$<BOOL:${MAST_EXT_SANITIZE}>,-O0,-O1>;-Wno-unknown-pragmas")
  add_library(emulated_kernels SHARED ${ARGN} ${emulation}/emulator.cpp)
  add_library(emulated_races SHARED EXCLUDE_FROM_ALL ${emulation}/emulator.cpp ${emulation}/races.cpp)
  add_library(watched_kernels OBJECT EXCLUDE_FROM_ALL ${ARGN})
  # The functions that these make the compiler call are in races.cpp, not in the compiler's library.
  set(watch -fsanitize=thread,alignment -g1)
  target_compile_options(watched_kernels PRIVATE ${watch})
  target_sources(emulated_races PRIVATE $<TARGET_OBJECTS:watched_kernels>)
  set_target_properties(emulated_races PROPERTIES LIBRARY_OUTPUT_DIRECTORY races
                                                  OUTPUT_NAME emulated_kernels)
  add_custom_command(TARGET emulated_races POST_BUILD
    COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:${target}> $<TARGET_FILE_DIR:emulated_races>)
  add_dependencies(emulated_races ${target})

  # What the emulator and the race detector are tested with.
  add_executable(faults EXCLUDE_FROM_ALL ${emulation}/faults.cpp ${emulation}/emulator.cpp ${emulation}/races.cpp)
  set_source_files_properties(${emulation}/faults.cpp PROPERTIES COMPILE_OPTIONS "-O1;-Wno-unknown-pragmas;${watch}")

  foreach(part emulated_kernels watched_kernels emulated_races faults)
    target_include_directories(${part} PRIVATE ${emulation} csrc)
    target_include_directories(${part} SYSTEM PRIVATE ${TORCH_DIR}/include)
    target_compile_options(${part} PRIVATE -Wall -Wextra -Werror)
    set_target_properties(${part} PROPERTIES CXX_VISIBILITY_PRESET default)
  endforeach()

  target_compile_definitions(${target} PRIVATE MAST_EXT_EMULATE_CUDA)
  target_link_libraries(${target} PRIVATE emulated_kernels)
  target_link_options(${target} PRIVATE "-Wl,-rpath,$ORIGIN")
endfunction()
