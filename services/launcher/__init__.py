"""The whole cluster on one machine: starts and stops the processes of ``deploy/Procfile``."""

__all__: list[str] = []
