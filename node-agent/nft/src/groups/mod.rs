//! Security groups, in force.
