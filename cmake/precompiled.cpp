// The source that CMake needs to make a precompiled header.
