// Has no content: CMake makes the precompiled header of tests for the object of this file.
