//! The next step of an experiment.
