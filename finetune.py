"""Fine-tune SAM-Med3D: `accelerate launch finetune.py --config configs/decoder.yaml data.manifest=...`."""

from sammed3d_ft.recipes.train import main

if __name__ == "__main__":
    main()
