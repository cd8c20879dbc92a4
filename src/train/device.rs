//! Where training computes: this project's own interpreter on the CPU, or libtorch on an NVIDIA GPU.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::init::parameters;
use super::networks::TrainedNetworks;
use super::unet::UnetNetworks;
use crate::engine::Tensor;
use crate::model::eager::Eager;
use crate::pipeline::Networks;

/// Where training computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The eager interpreter on the CPU: repeatable to the bit, on any number of threads.
    #[default]
    Cpu,
    /// libtorch on the CPU: what a GPU computes, where there is none. For tests.
    #[cfg(feature = "cuda")]
    TorchCpu,
    /// libtorch on that NVIDIA GPU. Two runs agree up to rounding.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such name.
    #[error("{0:?} is no device; there are cpu, cuda and cuda:1, cuda:2, ...")]
    Unknown(String),
    /// Not in this program.
    #[error(
        "this program was built without the feature `cuda`: build it with --features cuda and PyTorch's libraries (docs/adapt.md), or \
         train with --device cpu"
    )]
    NotBuilt,
    /// Not on this machine.
    #[error(
        "{wanted}: libtorch sees {found} NVIDIA GPUs; check nvidia-smi and that libtorch was built for CUDA, or train with --device cpu"
    )]
    Absent {
        /// What was asked for.
        wanted: String,
        /// GPUs that there are.
        found: usize,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            #[cfg(feature = "cuda")]
            Device::TorchCpu => write!(f, "torch-cpu"),
            #[cfg(feature = "cuda")]
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    /// Reads `cpu`, `cuda` or `cuda:N`, and asks whether that GPU is there.
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let index = match text {
            "cpu" => return Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            "torch-cpu" => return Ok(Device::TorchCpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        let Some(index) = index else { return Err(DeviceError::Unknown(text.into())) };
        Self::cuda(index)
    }
}

impl Device {
    #[cfg(not(feature = "cuda"))]
    fn cuda(_: usize) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    #[cfg(feature = "cuda")]
    fn cuda(index: usize) -> Result<Self, DeviceError> {
        let found = if tch::Cuda::is_available() { tch::Cuda::device_count().max(0) as usize } else { 0 };
        if index < found {
            Ok(Device::Cuda(index))
        } else {
            Err(DeviceError::Absent { wanted: format!("cuda:{index}"), found })
        }
    }

    /// libtorch's device, where libtorch computes.
    #[cfg(feature = "cuda")]
    pub(crate) fn torch(self) -> Option<tch::Device> {
        match self {
            Device::Cpu => None,
            Device::TorchCpu => Some(tch::Device::Cpu),
            Device::Cuda(i) => Some(tch::Device::Cuda(i)),
        }
    }

    /// The trained network on this device as the pipeline calls it: the adapted base, or the U-Net where the tensors are one's.
    pub fn networks_of(
        self,
        base: &BTreeMap<String, Tensor>,
        tensors: &BTreeMap<String, Tensor>,
        size: usize,
    ) -> Box<dyn Networks> {
        let is_unet = tensors.contains_key("unet.head.weight");
        #[cfg(feature = "cuda")]
        if let Some(device) = self.torch() {
            use crate::model::torch::Torch;
            // A U-Net needs nothing of the base; an adapter's tensor goes before the base's.
            let of_base = base.iter().filter(|(n, _)| !is_unet && !tensors.contains_key(*n));
            let torch = Torch::frozen(device, of_base.chain(tensors));
            return if is_unet {
                Box::new(UnetNetworks::over(torch, tensors, size))
            } else {
                Box::new(TrainedNetworks::over(torch, tensors, size))
            };
        }
        if is_unet {
            Box::new(UnetNetworks::over(Eager::new(parameters(&BTreeMap::new(), tensors)), tensors, size))
        } else {
            Box::new(TrainedNetworks::over(Eager::new(parameters(base, tensors)), tensors, size))
        }
    }
}
