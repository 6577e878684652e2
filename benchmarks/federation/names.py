"""The methods and models that have a name of their own, and where each stands, as ``module:name``: the form in which a
user names parts outside this repository.

Nothing is imported until it is needed, so that the command line can list them without PyTorch.
"""

METHODS = {
    "fedavg": "baselines.fedavg:FedAvgTrainer",
    "local": "baselines.local:LocalTrainer",
    "fedper": "baselines.fedper:FedPerTrainer",
    "pfedme": "baselines.pfedme:PFedMeTrainer",
    "fedprox": "baselines.fedprox:FedProxTrainer",
    "scaffold": "baselines.scaffold:ScaffoldTrainer",
    "feddyn": "baselines.feddyn:FedDynTrainer",
    "fedavgm": "baselines.fedopt:FedAvgMTrainer",
    "fedadam": "baselines.fedopt:FedAdamTrainer",
    "fedyogi": "baselines.fedopt:FedYogiTrainer",
    "ditto": "baselines.ditto:DittoTrainer",
    "fedrep": "baselines.fedrep:FedRepTrainer",
    "lg-fedavg": "baselines.lg_fedavg:LGFedAvgTrainer",
    "apfl": "baselines.apfl:ApflTrainer",
    "fedbabu": "baselines.fedbabu:FedBabuTrainer",
    "fedala": "baselines.fedala:FedAlaTrainer",
    "feddbe": "baselines.feddbe:FedDbeTrainer",
    "fedluar": "baselines.fedluar:FedLuarTrainer",
    "fedpac": "baselines.fedpac:FedPacTrainer",
    "fedmud": "baselines.fedmud:FedMudTrainer",
    "spafl": "baselines.spafl:SpaflTrainer",
    "fedlmt": "pfedpara.trainer:FEDLMT",
    "pfedlmt": "pfedpara.trainer:PFEDLMT",
    "fedselect": "baselines.fedselect:FedSelectTrainer",
    "pooled": "baselines.pooled:PooledTrainer",
    "per-fedavg": "baselines.per_fedavg:PerFedAvgTrainer",
    "fedbn": "baselines.fedbn:FedBNTrainer",
    "fedavg-ft": "baselines.fedavg_ft:FedAvgFtTrainer",
    "pfedpara-x": "pfedpara.trainer:PFEDPARA_X",
}
"""Beside these, FedAvg on factors is called by the factors' name: pfedpara, fedpara, lowrank, fedsa."""

WEIGHTS = {"pfedpara-x": "pfedpara", "fedlmt": "lowrank", "pfedlmt": "lowrank"}
"""The factors of methods that have some of their own, and are called otherwise."""

MODELS = {
    "mlp": "benchmarks.federation.models:mlp",
    "cnn": "benchmarks.federation.models:CNN",
    "cnn-bn": "benchmarks.federation.models:CNN_BN",
    "vgg16": "benchmarks.federation.models:VGG16",
    "resnet18": "benchmarks.federation.models:RESNET18",
    "lstm": "benchmarks.federation.models:LSTM",
}
