"""A PixArt of two million weights that paints a coloured shape in a corner.

Its classes and files are those of any PixArt-Sigma pipeline in diffusers: T5 encoder, autoencoder,
diffusion transformer, DDIM. Its checkpoint comes with mmalign (`TINY_PAINTER`);
`python -m mmalign.playground.train_painter FOLDER` has made it.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mmalign.playground.pictures import COLOURS, CORNERS, KINDS, SIDE

TINY_PAINTER = Path(__file__).parent / "tiny-painter"
"""The folder of the checkpoint that comes with mmalign."""

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LENGTH = 5  # tokens of the longest prompt
LATENT, CHANNELS = SIDE // 4, 8
WIDTH, LAYERS, HEADS = 128, 4, 4


def random_painter() -> PixArtSigmaPipeline:
    """The pipeline before it has learned anything."""
    tokenizer = word_tokenizer([PAD, END, "at", *COLOURS, *KINDS, *CORNERS, UNKNOWN])
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=WIDTH,
                d_kv=WIDTH // HEADS,
                d_ff=2 * WIDTH,
                num_layers=2,
                num_heads=HEADS,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        ),
        vae=AutoencoderKL(
            block_out_channels=(16, 32, 48),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=SIDE,
        ),
        transformer=PixArtTransformer2DModel(
            sample_size=LATENT,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=LAYERS,
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
            timestep_spacing="trailing",
        ),
    )


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, and END; PAD, END and UNKNOWN have to be among the words."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=LENGTH,
    )
