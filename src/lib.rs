//! lvmsync: moving, replicating and keeping the history of block devices.
