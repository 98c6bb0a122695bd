"""The retraining pipeline on Kubeflow, and on this machine."""
