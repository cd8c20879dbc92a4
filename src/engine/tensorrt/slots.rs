//! Where each method stands in TensorRT's virtual tables, by version; read from one data file.
//!
//! `slots.tsv` has one line for each method: interface, name, arguments, and its slot in the Itanium C++ virtual table of 8.6.1,
//! 10.3.0, 10.16 and 11.1 (empty where that version lacks it; the two destructor slots are counted). Within a major version the
//! tables only grow at their end, so a column serves every later minor version of its major.

use std::fmt;

use super::TrtError;

const TABLE: &str = include_str!("slots.tsv");
/// Versions of the columns.
const COLUMNS: [Version; 4] =
    [Version::new(8, 6, 1), Version::new(10, 3, 0), Version::new(10, 16, 0), Version::new(11, 1, 0)];

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl Version {
    /// From its parts.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Version { major, minor, patch }
    }

    /// As `getInferLibVersion` gives it: 8601 is 8.6.1, from version 10 on 101600 is 10.16.0.
    pub fn from_int(v: i32) -> Option<Self> {
        let v = u32::try_from(v).ok()?;
        match v {
            1000..=99_999 => Some(Version::new(v / 1000, v / 100 % 10, v % 100)),
            100_000..=9_999_999 => Some(Version::new(v / 10_000, v / 100 % 100, v % 100)),
            _ => None,
        }
    }

    /// As TensorRT-RTX gives it: 10701 is 1.7.1.
    pub fn rtx_from_int(v: i32) -> Option<Self> {
        let v = u32::try_from(v).ok().filter(|v| (10_000..100_000).contains(v))?;
        Some(Version::new(v / 10_000, v / 100 % 100, v % 100))
    }

    /// The number that an entry point is given: the version that the caller was made for.
    pub fn to_int(self) -> i32 {
        let v = if self.major < 10 {
            self.major * 1000 + self.minor * 100 + self.patch
        } else {
            self.major * 10_000 + self.minor * 100 + self.patch
        };
        v as i32
    }

    /// The column that describes this version.
    fn column(self) -> Result<usize, TrtError> {
        // 8.6.0, the early access of 8.6: read from its library, its tables are those of 8.6.1 without the engine's last five methods (50 to
        // 54), which nothing here calls.
        let served = if (self.major, self.minor, self.patch) == (8, 6, 0) { COLUMNS[0] } else { self };
        let known = |i: &usize| COLUMNS[*i].major == served.major && COLUMNS[*i] <= served;
        // 8.7 and later of major 8 were never released for anything; 8.6 is one table.
        let usable = self.major != 8 || self.minor == 6;
        (0..COLUMNS.len()).rev().find(known).filter(|_| usable).ok_or(TrtError::Version { found: self })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

macro_rules! methods {
    ($($variant:ident = $interface:literal $name:literal $arguments:literal,)*) => {
        /// A method that this binding calls. The name alone does not say which of several overloads is meant, so each has the
        /// beginning of its signature too.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        #[allow(missing_docs)]
        pub enum Method { $($variant,)* }

        impl Method {
            /// Every method.
            pub const ALL: &[Method] = &[$(Method::$variant,)*];

            /// Interface, name, and how its signature begins.
            pub fn signature(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Method::$variant => ($interface, $name, $arguments),)* }
            }
        }
    };
}

methods! {
    RuntimeDeserialize = "VRuntime" "deserializeCudaEngine" "nvinfer1::ICudaEngine* <- void const* blob, std::size_t size",
    RuntimeSetErrorRecorder = "VRuntime" "setErrorRecorder" "void <-",
    EngineLayers = "VCudaEngine" "getNbLayers" "int32_t <-",
    EngineName = "VCudaEngine" "getName" "char const* <-",
    EngineTensors = "VCudaEngine" "getNbIOTensors" "int32_t <-",
    EngineTensorName = "VCudaEngine" "getIOTensorName" "char const* <-",
    EngineTensorShape = "VCudaEngine" "getTensorShape" "Dims <-",
    EngineTensorType = "VCudaEngine" "getTensorDataType" "DataType <-",
    EngineTensorMode = "VCudaEngine" "getTensorIOMode" "TensorIOMode <-",
    EngineRefittable = "VCudaEngine" "isRefittable" "bool <-",
    EngineContext = "VCudaEngine" "createExecutionContext" "IExecutionContext* <-",
    EngineMemory = "VCudaEngine" "getDeviceMemorySize" "size_t <-",
    EngineMemoryV2 = "VCudaEngine" "getDeviceMemorySizeV2" "int64_t <-",
    ContextSetShape = "VExecutionContext" "setInputShape" "bool <-",
    ContextShape = "VExecutionContext" "getTensorShape" "Dims <-",
    ContextSetAddress = "VExecutionContext" "setTensorAddress" "bool <-",
    ContextInferShapes = "VExecutionContext" "inferShapes" "int32_t <-",
    ContextEnqueue = "VExecutionContext" "enqueueV3" "bool <-",
    ContextSetErrorRecorder = "VExecutionContext" "setErrorRecorder" "void <-",
    RefitterSet = "VRefitter" "setNamedWeights" "bool <- char const* name, Weights weights",
    RefitterRefit = "VRefitter" "refitCudaEngine" "bool <-",
    RefitterAll = "VRefitter" "getAllWeights" "int32_t <-",
    RefitterMissing = "VRefitter" "getMissingWeights" "int32_t <-",
    BuilderConfig = "VBuilder" "createBuilderConfig" "nvinfer1::IBuilderConfig* <-",
    BuilderNetwork = "VBuilder" "createNetworkV2" "nvinfer1::INetworkDefinition* <-",
    BuilderProfile = "VBuilder" "createOptimizationProfile" "nvinfer1::IOptimizationProfile* <-",
    BuilderSerialized = "VBuilder" "buildSerializedNetwork" "nvinfer1::IHostMemory* <-",
    BuilderSetErrorRecorder = "VBuilder" "setErrorRecorder" "void <-",
    ConfigSetFlag = "VBuilderConfig" "setFlag" "void <-",
    ConfigSetPool = "VBuilderConfig" "setMemoryPoolLimit" "void <-",
    ConfigAddProfile = "VBuilderConfig" "addOptimizationProfile" "int32_t <-",
    ConfigTactics = "VBuilderConfig" "setTacticSources" "bool <-",
    ConfigLevel = "VBuilderConfig" "setBuilderOptimizationLevel" "void <-",
    ConfigCreateCache = "VBuilderConfig" "createTimingCache" "nvinfer1::ITimingCache* <-",
    ConfigSetCache = "VBuilderConfig" "setTimingCache" "bool <-",
    ConfigCache = "VBuilderConfig" "getTimingCache" "nvinfer1::ITimingCache const* <-",
    CacheSerialize = "VTimingCache" "serialize" "nvinfer1::IHostMemory* <-",
    NetworkInputs = "VNetworkDefinition" "getNbInputs" "int32_t <-",
    NetworkInput = "VNetworkDefinition" "getInput" "ITensor* <-",
    NetworkOutputs = "VNetworkDefinition" "getNbOutputs" "int32_t <-",
    NetworkOutput = "VNetworkDefinition" "getOutput" "ITensor* <-",
    NetworkLayers = "VNetworkDefinition" "getNbLayers" "int32_t <-",
    TensorName = "VTensor" "getName" "char const* <-",
    TensorDims = "VTensor" "getDimensions" "Dims <-",
    ProfileSetDims = "VOptimizationProfile" "setDimensions" "bool <-",
    HostData = "VHostMemory" "data" "void* <-",
    HostSize = "VHostMemory" "size" "std:: <-",
    ParserParse = "IParser" "parse" "bool <-",
    ParserErrors = "IParser" "getNbErrors" "int32_t <-",
    ParserError = "IParser" "getError" "IParserError const* <-",
    ParserDelete = "IParser" "~IParser" "void <-",
    ErrorDescription = "IParserError" "desc" "char const* <-",
    ErrorNode = "IParserError" "node" "int32_t <-",
}

/// Slots of every method for one version.
#[derive(Clone, Debug)]
pub struct SlotTable {
    version: Version,
    generation: u32,
    number: i32,
    slots: Vec<Option<usize>>,
}

impl SlotTable {
    /// The table of a version.
    ///
    /// # Errors
    /// [`TrtError::Version`] for a version that no column describes.
    pub fn of(version: Version) -> Result<Self, TrtError> {
        Ok(SlotTable::from_column(version, version.column()?, version.to_int()))
    }

    /// The table of a version of TensorRT-RTX: 1.7 has the interfaces of 11.
    ///
    /// # Errors
    /// [`TrtError::Version`] for any other.
    pub fn rtx(version: Version) -> Result<Self, TrtError> {
        if (version.major, version.minor) != (1, 7) {
            return Err(TrtError::Version { found: version });
        }
        let number = (version.major * 10_000 + version.minor * 100 + version.patch) as i32;
        Ok(SlotTable::from_column(version, COLUMNS.len() - 1, number))
    }

    fn from_column(version: Version, column: usize, number: i32) -> Self {
        let slots = Method::ALL.iter().map(|m| slot(*m, column)).collect();
        SlotTable { version, generation: COLUMNS[column].major, number, slots }
    }

    /// The major version whose interfaces these are.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The version as an entry point is given it.
    pub fn number(&self) -> i32 {
        self.number
    }

    /// The slot of a method.
    ///
    /// # Errors
    /// [`TrtError::Method`] where this version lacks it.
    pub fn slot(&self, method: Method) -> Result<usize, TrtError> {
        let (interface, name, _) = method.signature();
        self.slots[method as usize].ok_or(TrtError::Method { interface, name, version: self.version })
    }

    /// Whether this version has a method.
    pub fn has(&self, method: Method) -> bool {
        self.slots[method as usize].is_some()
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }
}

fn slot(method: Method, column: usize) -> Option<usize> {
    let (interface, name, signature) = method.signature();
    TABLE.lines().skip(1).find_map(|line| {
        let mut cells = line.split('\t');
        let fits = cells.next() == Some(interface)
            && cells.next() == Some(name)
            && cells.next().is_some_and(|s| s.starts_with(signature));
        fits.then(|| cells.nth(column).and_then(|c| c.parse().ok())).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn versions_as_the_library_writes_them() {
        for (int, v) in
            [(8601, Version::new(8, 6, 1)), (100_300, Version::new(10, 3, 0)), (110_401, Version::new(11, 4, 1))]
        {
            assert_eq!(Version::from_int(int), Some(v));
            assert_eq!(v.to_int(), int);
        }
        assert_eq!((Version::from_int(0), Version::from_int(-5), Version::from_int(i32::MAX)), (None, None, None));
    }

    #[test]
    fn only_versions_with_a_table_are_taken() {
        for good in [(8, 6, 0), (8, 6, 1), (8, 6, 3), (10, 3, 0), (10, 7, 2), (10, 16, 1), (11, 1, 0), (11, 4, 0)] {
            let v = Version::new(good.0, good.1, good.2);
            assert_eq!(SlotTable::of(v).unwrap().version(), v);
        }
        for bad in [(7, 2, 3), (8, 5, 2), (8, 7, 0), (9, 3, 0), (10, 0, 1), (10, 2, 0), (11, 0, 0), (12, 0, 0)] {
            let v = Version::new(bad.0, bad.1, bad.2);
            assert!(matches!(SlotTable::of(v), Err(TrtError::Version { found }) if found == v), "{v}");
        }
    }

    #[test]
    fn the_file_is_whole_and_no_two_methods_share_a_slot() {
        for (column, version) in COLUMNS.iter().enumerate() {
            let mut seen = BTreeSet::new();
            for line in TABLE.lines().skip(1) {
                let cells: Vec<&str> = line.split('\t').collect();
                assert_eq!(cells.len(), 7, "{line}");
                if let Ok(n) = cells[3 + column].parse::<usize>() {
                    assert!(seen.insert((cells[0], n)), "{version}: {} has slot {n} twice ({})", cells[0], cells[1]);
                } else {
                    assert!(cells[3 + column].is_empty(), "{line}");
                }
            }
        }
    }

    #[test]
    fn every_method_is_in_every_version_but_what_is_known_to_be_missing() {
        for v in COLUMNS {
            let table = SlotTable::of(v).unwrap();
            for m in Method::ALL {
                let missing = match m {
                    Method::EngineMemory => v.major == 11,
                    Method::EngineMemoryV2 => v.major == 8,
                    _ => false,
                };
                assert_eq!(table.has(*m), !missing, "{m:?} in {v}");
                assert_eq!(table.slot(*m).is_err(), missing);
            }
        }
        // Known by heart from the headers.
        let at = |v: Version, m| SlotTable::of(v).unwrap().slot(m).unwrap();
        assert_eq!(COLUMNS.map(|v| at(v, Method::ContextEnqueue)), [44, 37, 37, 36]);
        assert_eq!(COLUMNS.map(|v| at(v, Method::RuntimeDeserialize)), [2, 3, 3, 3]);
        assert_eq!(COLUMNS.map(|v| at(v, Method::BuilderSerialized)), [17, 14, 14, 11]);
    }
}
