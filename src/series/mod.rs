//! Instances into a volume: grouping, completion evidence, geometry.
