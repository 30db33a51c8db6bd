from vdm_diffusers.train import run_command


if __name__ == "__main__":
    run_command()
