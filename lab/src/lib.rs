//! The lab: a real kernel with real LVM for tests, on any Debian machine.
